# SPDX-License-Identifier: Apache-2.0
"""From a request for Medusa to a vLLM configuration that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_medusa import compatibility
from vllm_medusa.checkpoint import load_heads, resolve_heads
from vllm_medusa.config import MedusaConfig
from vllm_medusa.distributed.choose import choose_executor
from vllm_medusa.distributed.installation import note_installation
from vllm_medusa.errors import ConfigError, UnsupportedError
from vllm_medusa.threads import one_thread
from vllm_medusa.tree import BeamTree, TokenTree, parse_tree
from vllm_medusa.tree.resolve import resolve_batch_table, resolve_tree

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig, VllmConfig
    from vllm.engine.arg_utils import EngineArgs

OPTIONS_KEY = "medusa"
"""Our key in `VllmConfig.additional_config`, vLLM's place for plugin options."""

PROPOSER = "vllm_medusa.propose.MedusaProposer"
WORKERS = {
    "cpu": "vllm_medusa.worker.MedusaCPUWorker",
    "cuda": "vllm_medusa.gpu_worker.MedusaGPUWorker",
}
"""Worker class by platform (`vllm.platforms.current_platform.device_type`)."""
SCHEDULERS = {
    False: "vllm_medusa.scheduler.MedusaScheduler",
    True: "vllm_medusa.scheduler.MedusaAsyncScheduler",
}
"""Scheduler class by whether scheduling is asynchronous."""


def prepare_engine_args(engine_args: EngineArgs, options: dict[str, Any]) -> None:
    """Replace a request for the method "medusa" by what vLLM runs.

    `options` are those of `speculative_config={"method": "medusa", …}`.

    vLLM knows the method name "custom_class" in every supported version; worker
    class and options travel in the fields made for plugins.

    Raises:
        MedusaError: the configuration, the heads or the tree are at fault, or this
            vLLM is unknown.
    """
    compatibility.require()
    config = MedusaConfig.from_speculative_config(options)
    _verify_classes(engine_args)
    path = resolve_heads(config.heads, config.revision)
    with one_thread():
        checkpoint = load_heads(
            path, num_heads=config.num_heads, draft_vocab=config.draft_vocab
        )
    tree = resolve_tree(config, checkpoint.folder, checkpoint.spec.num_heads)
    beam = BeamTree.parse(config.tree)
    vocabulary = checkpoint.spec.draft_vocab_size or checkpoint.spec.vocab_size
    num_ranks = tree.max_rank + 1 if beam is None else beam.width
    if vocabulary is not None and num_ranks > vocabulary:
        raise ConfigError(
            f"the tree asks for guess {num_ranks} of a head, but the draft "
            f"vocabulary has only {vocabulary} tokens"
        )
    table = resolve_batch_table(config, checkpoint.folder, tree)
    resolved = config.model_copy(
        update={
            "heads": str(path),
            "revision": None,
            "tree": tree.paths if beam is None else beam.text,
            "num_speculative_tokens": None,
            "num_speculative_tokens_per_batch_size": None,
        }
    )
    speculative: dict[str, Any] = {
        "method": "custom_class",
        "model": PROPOSER,
        "num_speculative_tokens": tree.num_nodes,
    }
    if table is not None:
        speculative["num_speculative_tokens_per_batch_size"] = [
            list(entry) for entry in table
        ]
    engine_args.speculative_config = speculative
    engine_args.spec_method = engine_args.spec_model = engine_args.spec_tokens = None
    engine_args.worker_cls = _worker_cls()
    choose_executor(engine_args)
    engine_args.additional_config = {
        **(engine_args.additional_config or {}),
        OPTIONS_KEY: {
            "config": resolved.as_dict(),
            "hidden_size": checkpoint.spec.hidden_size,
            "vocab_size": checkpoint.spec.vocab_size,
        },
    }


def is_medusa(speculative_config: SpeculativeConfig) -> bool:
    """Whether `prepare_engine_args` made this configuration."""
    return bool(speculative_config.model == PROPOSER)


def medusa_options(vllm_config: VllmConfig) -> dict[str, Any] | None:
    """Return the options that `prepare_engine_args` left, or None without Medusa."""
    additional = vllm_config.additional_config
    return additional.get(OPTIONS_KEY) if isinstance(additional, dict) else None


def medusa_config(vllm_config: VllmConfig) -> MedusaConfig:
    """Return the resolved MedusaConfig of an engine that runs Medusa."""
    options = medusa_options(vllm_config)
    if options is None:
        raise ConfigError("this engine was not started with Medusa")
    return MedusaConfig(**options["config"])


def scheduled_tree(vllm_config: VllmConfig) -> TokenTree:
    """Return the tree of an engine that runs Medusa: every request's, or, where a beam
    search chooses, that of the requests whose tree must be known beforehand."""
    config = medusa_config(vllm_config)
    assert config.tree is not None, "prepare_engine_args resolves the tree"
    return parse_tree(config.tree, num_heads=config.num_heads)


def complete_vllm_config(vllm_config: VllmConfig) -> None:
    """Choose the scheduler, once vLLM has decided whether it is asynchronous, and note
    which plugin the engine was started with."""
    scheduler = vllm_config.scheduler_config
    scheduler.scheduler_cls = SCHEDULERS[bool(scheduler.async_scheduling)]
    note_installation(vllm_config)


def _verify_classes(engine_args: EngineArgs) -> None:
    for flag, value, default in (
        ("--worker-cls", engine_args.worker_cls, "auto"),
        ("--scheduler-cls", engine_args.scheduler_cls, None),
    ):
        if value != default:
            raise ConfigError(
                f"{flag} {value} contradicts Medusa, which brings its own "
                f"{flag[2:-4]} class: drop one of the two"
            )


def _worker_cls() -> str:
    from vllm.platforms import current_platform

    platform = current_platform
    if platform.is_cpu():
        return WORKERS["cpu"]
    if platform.is_cuda():
        return WORKERS["cuda"]
    raise UnsupportedError(
        f"Medusa does not run on the platform {platform.device_name!r}: use NVIDIA "
        "GPUs or vLLM's CPU backend, or serve without Medusa"
    )
