# SPDX-License-Identifier: Apache-2.0
"""Options beside which a tree would go wrong are refused; the others are known."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.config import AuxOutputConfig, EngramConfig, KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

from tests.unit.test_refusals import vllm_config
from vllm_medusa.errors import UnsupportedError
from vllm_medusa.option_refusals import CONNECTORS
from vllm_medusa.refusals import verify_vllm_config


def connector(name: str, **fields: Any) -> KVTransferConfig:
    return KVTransferConfig(kv_connector=name, kv_role="kv_both", **fields)


def test_connectors_of_vllm() -> None:
    """All but the ones that are known to be right, among them every name of vLLM."""
    known = set(KVConnectorFactory._registry)
    assert set(CONNECTORS) < known
    for name in known:
        config = vllm_config(kv_transfer_config=connector(name))
        if name in CONNECTORS:
            verify_vllm_config(config)
            continue
        with pytest.raises(UnsupportedError, match=f"{name}.*use OffloadingConnector"):
            verify_vllm_config(config)


def test_connector_of_the_same_name() -> None:
    config = connector("OffloadingConnector", kv_connector_module_path="my.module")
    with pytest.raises(UnsupportedError, match="OffloadingConnector"):
        verify_vllm_config(vllm_config(kv_transfer_config=config))


def test_no_connector() -> None:
    verify_vllm_config(vllm_config(kv_transfer_config=KVTransferConfig()))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"aux_output_config": AuxOutputConfig(enable_return_routed_experts=True)},
            "--enable-return-routed-experts: drop it",
        ),
        ({"engram_config": EngramConfig()}, "n-gram embeddings of org/base"),
        ({"model": {"enable_prompt_embeds": True}}, "--enable-prompt-embeds: drop it"),
        ({"model": {"is_diffusion": True}}, "diffusion models"),
        ({"parallel": {"enable_elastic_ep": True}}, "drop --enable-elastic-ep"),
    ],
)
def test_options(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        verify_vllm_config(vllm_config(**fields))


def test_front_end_in_rust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(UnsupportedError, match="unset VLLM_USE_RUST_FRONTEND"):
        verify_vllm_config(vllm_config())
