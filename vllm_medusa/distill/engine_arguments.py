# SPDX-License-Identifier: Apache-2.0
"""Arguments of the vLLM engine, whether it runs here or in a Ray cluster."""

from __future__ import annotations

from typing import Any

from vllm_medusa.config import MedusaConfig
from vllm_medusa.distill.options import DistillOptions

_PREFILL_TOKENS = 2048
"""Prompt tokens of a step on a CPU, or one whole prompt if that is longer."""


def engine_arguments(options: DistillOptions, *, is_on_cpu: bool) -> dict[str, Any]:
    """Arguments of `vllm.LLM` beside the model."""
    engine = options.engine
    arguments: dict[str, Any] = {
        "dtype": options.dtype,
        "max_model_len": options.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "seed": options.seed,
        # Samples of a prompt and later turns share their context.
        "enable_prefix_caching": True,
        # A request says all itself.
        "generation_config": "vllm",
        "disable_log_stats": True,
    }
    if is_on_cpu:
        arguments |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30),
            # vLLM takes back the draw of a half-read prompt by moving the offset of
            # the request's generator (`GPUModelRunner._bookkeeping_sync`), which
            # generators on a CPU do not have: prompts are read whole.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(_PREFILL_TOKENS, options.max_model_len),
        }
    if engine.speculative_model is not None:
        config = MedusaConfig.parse(engine.speculative_model)
        arguments["speculative_config"] = config.to_speculative_config()
    return arguments
