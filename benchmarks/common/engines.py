# SPDX-License-Identifier: Apache-2.0
"""One engine in its own process for every variant of a benchmark."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common.variants import Variant
from vllm_medusa.engines.process import EngineProcess

WORKER = "benchmarks.common.worker"
ROOT = Path(__file__).resolve().parents[2]


def start_engines(
    stack: ExitStack,
    variants: Sequence[Variant],
    shared: Mapping[str, Any],
    environment: Mapping[str, str],
) -> dict[str, EngineProcess]:
    """One worker process per variant, by its name; they load side by side.

    `shared` are arguments of `LLM` for all. `stack` ends the processes.
    """
    logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    engines = {
        variant.name: stack.enter_context(
            EngineProcess(
                variant.name,
                WORKER,
                {**shared, **variant.arguments},
                {**environment, **variant.environment},
                logs / f"{number}.log",
                ROOT,
            )
        )
        for number, variant in enumerate(variants)
    }
    for name, engine in engines.items():
        print(f"{name} loaded in {engine.wait_until_ready():.0f} s", flush=True)
    return engines
