# SPDX-License-Identifier: Apache-2.0
"""From a request for Medusa to a vLLM configuration that runs it, or a refusal.

Everything that can be known to fail is refused here, before the model loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_medusa import compatibility
from vllm_medusa.checkpoint import load_heads, resolve_heads
from vllm_medusa.config import MedusaConfig
from vllm_medusa.errors import CheckpointError, ConfigError, UnsupportedError
from vllm_medusa.threads import one_thread
from vllm_medusa.tree import BeamTree, TokenTree, parse_tree
from vllm_medusa.tree.resolve import resolve_batch_table, resolve_tree

if TYPE_CHECKING:
    from vllm.config import ModelConfig, SpeculativeConfig, VllmConfig
    from vllm.engine.arg_utils import EngineArgs

OPTIONS_KEY = "medusa"
"""Our key in `VllmConfig.additional_config`, vLLM's place for plugin options."""

PROPOSER = "vllm_medusa.propose.MedusaProposer"
WORKERS = {
    "cpu": "vllm_medusa.worker.MedusaCPUWorker",
    "cuda": "vllm_medusa.gpu_worker.MedusaGPUWorker",
}
"""Worker class by platform (`vllm.platforms.current_platform.device_type`)."""


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
    if engine_args.worker_cls != "auto":
        raise ConfigError(
            f"--worker-cls {engine_args.worker_cls} contradicts Medusa, which brings "
            "its own worker class: drop one of the two"
        )
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


def verify_vllm_config(vllm_config: VllmConfig) -> None:
    """Refuse combinations that could not work, and heads of another model.

    Raises:
        UnsupportedError: naming the option or model feature.
        CheckpointError: the heads do not fit the base model.
    """
    options = medusa_options(vllm_config)
    if options is None:
        return
    _verify_runner(vllm_config)
    _verify_parallel(vllm_config)
    model = vllm_config.model_config
    _verify_model(model)
    _verify_fit(model, options)


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


def _verify_runner(vllm_config: VllmConfig) -> None:
    from vllm.platforms import current_platform

    attention = medusa_config(vllm_config).attention
    if vllm_config.use_v2_model_runner:
        _verify_v2(vllm_config)
    elif not current_platform.is_cpu():
        raise UnsupportedError(
            "on a GPU Medusa runs on Model Runner V2 only, which is switched off: "
            "unset VLLM_USE_V2_MODEL_RUNNER or set it to 1"
        )
    elif attention != "auto":
        raise UnsupportedError(
            f"attention={attention} is for Model Runner V2, and this engine runs V1, "
            "which has one implementation: drop the option"
        )
    elif vllm_config.scheduler_config.async_scheduling:
        raise UnsupportedError(
            "Medusa on Model Runner V1 does not support --async-scheduling: drop it"
        )


def _verify_v2(vllm_config: VllmConfig) -> None:
    """Refuse what would bypass the verifier, or see drafts as a chain."""
    from vllm import envs

    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    # (option in use, its name and what to do)
    refused = (
        (
            getattr(vllm_config, "watermark_config", None) is not None,
            "watermarking: drop the watermark configuration",
        ),
        (
            parallel.enable_batch_sharded_sampling,
            "batch-sharded sampling: use --no-enable-batch-sharded-sampling",
        ),
        (
            parallel.prefill_context_parallel_size > 1,
            "--prefill-context-parallel-size "
            f"{parallel.prefill_context_parallel_size}: use 1",
        ),
        (parallel.use_ubatching, "dual batch overlap: drop --enable-dbo"),
        (
            vllm_config.cache_config.kv_sharing_fast_prefill,
            "--kv-sharing-fast-prefill: drop it",
        ),
        (model.enable_trace_replay, "--enable-trace-replay: drop it"),
        (model.return_sampling_mask, "--return-sampling-mask: drop it"),
        (
            envs.VLLM_BATCH_INVARIANT,
            "batch-invariant kernels: unset VLLM_BATCH_INVARIANT",
        ),
        (
            model.rswa_window is not None,
            "this model's reference sliding window: serve it without Medusa",
        ),
        (
            model.is_mm_prefix_lm,
            "this model's bidirectional prefixes: serve it without Medusa",
        ),
    )
    for present, feature in refused:
        if present:
            raise UnsupportedError(f"Medusa does not support {feature}")


def _verify_parallel(vllm_config: VllmConfig) -> None:
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise UnsupportedError(
            f"Medusa does not support pipeline parallelism "
            f"(--pipeline-parallel-size {parallel.pipeline_parallel_size}): use "
            "tensor parallelism"
        )
    if parallel.decode_context_parallel_size > 1:
        raise UnsupportedError(
            "Medusa does not support --decode-context-parallel-size "
            f"{parallel.decode_context_parallel_size}: use 1"
        )


def _verify_model(model: ModelConfig) -> None:
    # (feature present, its name)
    refused = (
        (model.runner_type != "generate", f"runner type {model.runner_type!r}"),
        (model.is_encoder_decoder, "encoder-decoder models"),
        (model.is_attention_free, "models without attention"),
        (model.is_hybrid, "hybrid models with recurrent layers"),
        (model.use_mla, "multi-head latent attention (MLA)"),
        (model.uses_mrope, "multi-dimensional rotary positions (M-RoPE)"),
        (model.is_multimodal_model, "multimodal models"),
    )
    for present, feature in refused:
        if present:
            raise UnsupportedError(
                f"Medusa does not support {feature}: serve {model.model} without it"
            )


def _verify_fit(model: ModelConfig, options: dict[str, Any]) -> None:
    heads = options["config"]["heads"]
    for key, base in (
        ("hidden_size", model.get_hidden_size()),
        ("vocab_size", model.get_vocab_size()),
    ):
        if options[key] is not None and options[key] != base:
            raise CheckpointError(
                f"the heads {heads} have {key} {options[key]} but {model.model} has "
                f"{base}: use heads trained for this model"
            )
