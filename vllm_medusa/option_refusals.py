# SPDX-License-Identifier: Apache-2.0
"""Options of vLLM that would go wrong silently beside a tree, refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_medusa.errors import UnsupportedError, refuse_first

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig, VllmConfig

CONNECTORS = ("OffloadingConnector",)
"""Names of vLLM's KV connectors (`KVConnectorFactory`) that keep right content.

A step writes a tree's keys and values to slots that mostly hold rejected nodes, and
moves the accepted ones once they are known. A connector may therefore read a block only
after the step that filled it with committed tokens. `OffloadingConnector` does: it
stores full blocks of known tokens, at the beginning of the next step. Others read in
the forward pass, or count the drafts of a step among its tokens.
"""


def verify_options(vllm_config: VllmConfig) -> None:
    """Refuse the options that nothing else refuses.

    Raises:
        UnsupportedError: naming the option and what to do.
    """
    from vllm import envs

    if vllm_config.kv_transfer_config is not None:
        _verify_connector(vllm_config.kv_transfer_config)
    model = vllm_config.model_config
    # (option in use, its name and what to do)
    refused = (
        (
            # It does not run the check of requests, which is Python's.
            envs.VLLM_USE_RUST_FRONTEND,
            "the front end in Rust: unset VLLM_USE_RUST_FRONTEND",
        ),
        (
            # What it returns by row would be that of the tree's slots.
            vllm_config.aux_output_config.enabled,
            "--enable-return-routed-experts: drop it",
        ),
        (
            # A row's neighbours are looked up by slot, and those of a tree are others.
            vllm_config.engram_config is not None,
            f"the n-gram embeddings of {model.model}: serve it without Medusa",
        ),
        (
            # Rows are processed as the token ids they stand for.
            model.enable_prompt_embeds,
            "--enable-prompt-embeds: drop it",
        ),
        (model.is_diffusion, f"diffusion models: serve {model.model} without it"),
        (
            vllm_config.parallel_config.enable_elastic_ep,
            "elastic expert parallelism: drop --enable-elastic-ep",
        ),
    )
    refuse_first(refused)


def _verify_connector(config: KVTransferConfig) -> None:
    name = config.kv_connector
    if name is None:
        return
    allowed = " or ".join(CONNECTORS)
    if config.kv_connector_module_path is not None or name not in CONNECTORS:
        raise UnsupportedError(
            f"Medusa does not support the KV connector {name}, which may copy keys and "
            "values of a tree before the accepted ones are in place: drop "
            f"--kv-transfer-config, or use {allowed} (--kv-offloading-size with "
            "--kv-offloading-backend native)"
        )
