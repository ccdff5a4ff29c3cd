# SPDX-License-Identifier: Apache-2.0
"""Engines for the GPU benchmarks, each in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.variants import WITHOUT_PLUGINS
from benchmarks.gpu.grid import PLAIN, Grid
from benchmarks.gpu.models import Model
from benchmarks.gpu.worker_probe import PROBE
from vllm_medusa.engines.process import EngineError, EngineProcess

WORKER = "benchmarks.gpu.engine_worker"
ROOT = Path(__file__).resolve().parents[2]
# What an engine takes beside weights and KV cache: CUDA's context, activations, graphs.
_OTHER_BYTES = 3 << 30
_USED_SHARE = 0.94
_MAX_PREFILL = 8192


@dataclass(frozen=True)
class Setup:
    """What all engines of a run share.

    `memory_bytes` is the GPU's memory, None on a CPU; `graphs` whether CUDA graphs are
    captured; `environment` is added to the engines' own.
    """

    dtype: str
    graphs: bool
    memory_bytes: int | None
    environment: Mapping[str, str] = field(default_factory=dict)


class QuickEngine(EngineProcess):
    """An engine that takes the next job at once: a GPU has no cores to wait for."""

    def call(self, job: str, **arguments: Any) -> Any:
        """As `EngineProcess.call`, without the pause after it."""
        self._send({"job": job, **arguments})
        return self._receive()


def kv_bytes(model: Model, memory_bytes: int, engines: int) -> int:
    """Bytes of KV cache for each of `engines` engines that share a GPU.

    ValueError if not even the weights fit.
    """
    weights = model.weight_bytes + model.head_bytes + _OTHER_BYTES
    left = int(memory_bytes * _USED_SHARE) // engines - weights
    if left < model.kv_bytes * 1024:
        raise ValueError(
            f"{engines} engines of {model.name} do not fit into "
            f"{memory_bytes / 2**30:.0f} GiB: give fewer --engines"
        )
    return left


def engine_arguments(
    model: Model, grid: Grid, rows: int, attention: str, setup: Setup, cache: int
) -> dict[str, Any]:
    """Arguments of `LLM` for plain vLLM (`rows` 1) or trees of `rows` rows.

    `cache` is the KV cache in bytes. Prompts are found in the prefix cache when a cell
    is visited again; a decode step does not know the difference.
    """
    batch = max(grid.batches)
    arguments: dict[str, Any] = {
        **model.engine_arguments(),
        "dtype": setup.dtype,
        "max_model_len": grid.max_model_len,
        "hf_overrides": {"max_position_embeddings": grid.max_model_len},
        "max_num_seqs": batch,
        "max_num_batched_tokens": max(_MAX_PREFILL, batch * rows),
        "kv_cache_memory_bytes": cache,
        "worker_extension_cls": PROBE,
        # Tokens per step come from them.
        "disable_log_stats": False,
        "seed": 0,
    }
    if setup.memory_bytes is not None:
        # Other engines hold most of the memory; the cache's size is given above.
        arguments["gpu_memory_utilization"] = 0.01
    if setup.graphs:
        arguments["compilation_config"] = {
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [rows * size for size in grid.batches],
        }
    else:
        arguments["enforce_eager"] = True
    if rows != PLAIN:
        arguments["speculative_config"] = model.medusa(rows, attention)
    return arguments


def start(
    stack: ExitStack,
    arguments: Mapping[str, dict[str, Any]],
    environment: Mapping[str, str],
) -> tuple[dict[str, EngineProcess], dict[str, str]]:
    """Start engines side by side; `stack` ends them.

    Those without a `speculative_config` run vLLM as it comes, without plug-ins.
    Returns the engines by name, and why others refused to run.
    """
    logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    processes = {}
    for number, (name, options) in enumerate(arguments.items()):
        plugins = {} if "speculative_config" in options else WITHOUT_PLUGINS
        processes[name] = stack.enter_context(
            QuickEngine(
                name,
                WORKER,
                options,
                {"TOKENIZERS_PARALLELISM": "false", **environment, **plugins},
                logs / f"{number}.log",
                ROOT,
            )
        )
    engines, refused = {}, {}
    for name, process in processes.items():
        try:
            print(f"{name} loaded in {process.wait_until_ready():.0f} s", flush=True)
            engines[name] = process
        except EngineError as error:
            refused[name] = str(error)
            print(f"{name} does not run: {error}", flush=True)
    return engines, refused


def names(rows: Sequence[int]) -> dict[int, str]:
    """Names of the engines by row count."""
    return {count: "plain" if count == PLAIN else f"{count} rows" for count in rows}
