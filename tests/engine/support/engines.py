# SPDX-License-Identifier: Apache-2.0
"""Engines in the test's own process, one after another."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform

from tests import interpreter

BLOCK_SIZE = 32
DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": BLOCK_SIZE,
    "max_model_len": 320,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 512,
    "seed": 0,
    "generation_config": "vllm",
    "disable_log_stats": False,
}

_alive: list[LLM] = []


def register_overrides_once() -> None:
    """Work around vLLM 0.32: with numba imported, the second engine of a process dies
    where the platform replaces Triton kernels that it replaced already."""
    original = current_platform.register_triton_kernel_overrides
    if getattr(original, "runs_once", False):
        return
    done = []

    def register_once() -> None:
        if not done:
            done.append(True)
            original()

    register_once.runs_once = True  # type: ignore[attr-defined]
    type(current_platform).register_triton_kernel_overrides = staticmethod(
        register_once
    )


@contextmanager
def engine(
    model: str | Path, medusa: Mapping[str, Any] | None = None, **options: Any
) -> Iterator[LLM]:
    """Run an engine: plain, or with Medusa if `medusa` holds its options.

    `medusa` needs "model" (the heads); "method" is filled in. `options` override
    `DEFAULTS`. The engine is shut down at the end of the block, and with it the
    process groups that all engines of a process share: one at a time.
    """
    assert not _alive, "another engine of this process is still running"
    register_overrides_once()
    if interpreter.is_installed():
        interpreter.adapt_vllm()
    arguments = {**DEFAULTS, "model": str(model), **options}
    if medusa is not None:
        arguments["speculative_config"] = {
            "method": "medusa",
            **medusa,
            "model": str(medusa["model"]),
        }
    llm = LLM(**arguments)
    _alive.append(llm)
    try:
        yield llm
    finally:
        _alive.clear()
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def greedy(max_tokens: int = 32, **options: Any) -> SamplingParams:
    """Greedy sampling of exactly `max_tokens` tokens unless `options` say otherwise."""
    return SamplingParams(
        **{"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, **options}
    )


def generate(
    llm: LLM,
    prompts: list[list[int]],
    params: SamplingParams | list[SamplingParams],
) -> list[RequestOutput]:
    """Run prompts of token ids to the end, in order."""
    return llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False
    )


def token_ids(outputs: list[RequestOutput]) -> list[list[int]]:
    """The tokens of each request's first completion."""
    return [list(output.outputs[0].token_ids) for output in outputs]


def stats(llm: LLM) -> dict[str, Any]:
    """The counters of the Medusa runner."""
    (result,) = llm.collective_rpc("medusa_stats")
    return result


def metrics(llm: LLM) -> dict[str, Any]:
    """vLLM's own metrics by name: a number, or a list for a vector."""
    return {
        metric.name: getattr(metric, "value", None) or getattr(metric, "values", 0)
        for metric in llm.get_metrics()
        if hasattr(metric, "value") or hasattr(metric, "values")
    }
