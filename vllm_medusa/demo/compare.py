# SPDX-License-Identifier: Apache-2.0
"""Run both engines on the same prompts, taking turns."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vllm_medusa.calibration.machine import engine_environment
from vllm_medusa.default_model import cache_folder
from vllm_medusa.demo.report import PromptResult, Report, Sample
from vllm_medusa.engines.process import EngineProcess
from vllm_medusa.errors import ConfigError

DEFAULT_PROMPTS = Path(__file__).parent / "prompts.txt"


@dataclass(frozen=True)
class Setting:
    """What the demo runs: base model and heads (folders or hub ids), and how long.

    `rounds` answers of every engine to every prompt, of `max_tokens` tokens at most.
    """

    model: str
    heads: str
    prompts: tuple[str, ...]
    max_tokens: int
    rounds: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("max_tokens", "rounds"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not self.prompts:
            raise ConfigError("there is no prompt to answer; give at least one")


def on_cpu() -> bool:
    """Tell whether the installed vLLM is the CPU build, without importing it."""
    return "cpu" in metadata.version("vllm")


def engine_arguments(setting: Setting, with_medusa: bool) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` for one of the two engines."""
    arguments: dict[str, Any] = {
        "model": setting.model,
        "dtype": setting.dtype,
        # Compiling takes minutes on a CPU and gains little there.
        "enforce_eager": on_cpu(),
        "max_num_seqs": 1,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
    }
    if with_medusa:
        arguments["speculative_config"] = {"method": "medusa", "model": setting.heads}
    return arguments


def compare(setting: Setting, progress: Callable[[str], None]) -> Report:
    """Answer every prompt with plain vLLM and with Medusa, `rounds` times each.

    Each engine has a process of its own and both stay loaded; they take turns prompt
    by prompt and swap the order each round, so that a change in the machine's load
    meets both. `progress` is told what is going on.

    Raises:
        EngineError: an engine failed.
    """
    environment: dict[str, str] = {}
    if on_cpu():
        environment = engine_environment(os.environ.get("VLLM_CPU_OMP_THREADS_BIND"))
    with ExitStack() as stack:
        plain, medusa = (
            stack.enter_context(
                EngineProcess(
                    name,
                    "vllm_medusa.demo.worker",
                    engine_arguments(setting, with_medusa=name == "medusa"),
                    environment,
                    cache_folder() / f"demo-{name}.log",
                )
            )
            for name in ("plain", "medusa")
        )
        progress("loading the model twice, for plain vLLM and for Medusa")
        for engine in (plain, medusa):
            engine.wait_until_ready()
        samples: dict[tuple[EngineProcess, int], list[Sample]] = {}
        for turn in range(setting.rounds):
            for index, prompt in enumerate(setting.prompts):
                progress(
                    f"round {turn + 1} of {setting.rounds}, "
                    f"prompt {index + 1} of {len(setting.prompts)}"
                )
                for engine in (plain, medusa) if turn % 2 == 0 else (medusa, plain):
                    answer = engine.call(
                        "answer", prompt=prompt, max_tokens=setting.max_tokens
                    )
                    sample = Sample(**answer)
                    samples.setdefault((engine, index), []).append(sample)
        # Both at once, which halves the wait.
        plain.finish()
        medusa.finish()
    return Report(
        tuple(
            PromptResult(
                prompt, tuple(samples[plain, index]), tuple(samples[medusa, index])
            )
            for index, prompt in enumerate(setting.prompts)
        )
    )
