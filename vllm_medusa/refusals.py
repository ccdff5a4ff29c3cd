# SPDX-License-Identifier: Apache-2.0
"""What Medusa can't run on or beside, refused by name before the model loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_medusa.distributed.refusals import verify_parallel
from vllm_medusa.engine_config import medusa_config, medusa_options
from vllm_medusa.errors import CheckpointError, UnsupportedError, refuse_first
from vllm_medusa.option_refusals import verify_options

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


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
    verify_parallel(vllm_config.parallel_config)
    verify_options(vllm_config)
    model = vllm_config.model_config
    _verify_model(model)
    _verify_fit(model, options)


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
    refuse_first(refused)


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
    refuse_first(
        (present, f"{feature}: serve {model.model} without it")
        for present, feature in refused
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
