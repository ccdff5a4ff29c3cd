# SPDX-License-Identifier: Apache-2.0
"""How an evaluation is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_medusa.demo.compare import on_cpu
from vllm_medusa.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """How an evaluation is made.

    Attributes:
        model: folder or Hugging Face id of the base model.
        dtype: of all engines.
        max_model_len: context of all engines.
        max_tokens: longest answer; those that loop under greedy decoding are cut
            before, at every temperature.
        repeats: runs of every setting.
        concurrency: requests at a time.
        seed: of the first repeat's first prompt, where tokens are drawn.
        engines: loaded at once, plain vLLM among them.
        changes_trees: see `plan_engines`.
        bind: vLLM's VLLM_CPU_OMP_THREADS_BIND; None for all cores.

    Raises:
        ConfigError: a number is out of its range.
    """

    model: str
    dtype: str = "float32"
    max_model_len: int = 1024
    max_tokens: int = 32
    repeats: int = 2
    concurrency: int = 1
    seed: int = 0
    engines: int = 3
    changes_trees: bool = True
    bind: str | None = None

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_tokens", "repeats", "concurrency"):
            if (value := getattr(self, name)) < 1:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} must be at least 1: {value}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"--seed is 0 to {2**31 - 1}, not {self.seed}")

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of `LLM` for every engine.

        Prefix caching is off: a repeat would find its prompts from the one before.
        """
        return {
            "model": self.model,
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_num_seqs": max(self.concurrency, 4),
            # Compiling takes minutes on a CPU and gains little there.
            "enforce_eager": on_cpu(),
            "enable_prefix_caching": False,
            "disable_log_stats": False,
            "seed": 0,
        }
