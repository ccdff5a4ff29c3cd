# SPDX-License-Identifier: Apache-2.0
"""What a calibration measures."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_medusa.calibration.table import DEFAULT_MARGIN
from vllm_medusa.errors import ConfigError
from vllm_medusa.tree.token_tree import MAX_NODES
from vllm_medusa.wording import show

# Rows (nodes + 1) 2, 3, 4, 5, 6, 8, 9, 12, 16, 17, 24, 32, 48 and 64: on both sides of
# the multiples that kernels work in.
NODE_COUNTS = (1, 2, 3, 4, 5, 7, 8, 11, 15, 16, 23, 31, 47, 63)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate heads for a model on this machine.

    Attributes:
        tree: whose first nodes are used; None takes the best one for the accuracies
            that are measured.
        batch_sizes: numbers of running requests to time.
        node_counts: numbers of nodes to time, as far as a tree has them.
        margin: speed-up that a tree must at least bring, less 1.
        max_rows: rows over all requests of the largest step to time.
        steps: steps timed at a time.
        repeats: readings of each number of nodes at each number of requests.
        max_tokens: longest answer to measure accuracies on.
        temperature: of the answers, and of the model's probabilities.
        seed: of drawn answers and of the order of readings.
        dtype: of the engine.
        max_model_len: context of the engine.
        by_task: keep accuracies of each task by themselves, too.

    Raises:
        ConfigError: a value is out of its range.
    """

    tree: str | None = None
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    node_counts: tuple[int, ...] = NODE_COUNTS
    margin: float = DEFAULT_MARGIN
    max_rows: int = 160
    steps: int = 8
    repeats: int = 3
    max_tokens: int = 96
    temperature: float = 0.0
    seed: int = 0
    dtype: str = "float32"
    max_model_len: int = 2048
    by_task: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "repeats", "max_rows", "max_model_len"):
            self._check(name, 1)
        # The first token of an answer comes with the prompt; heads guess the others.
        self._check("max_tokens", 2)
        self._check("seed", 0)
        for name, most in (("batch_sizes", math.inf), ("node_counts", MAX_NODES)):
            values = getattr(self, name)
            if not values or min(values) < 1 or max(values) > most:
                limit = "" if most == math.inf else f" to {most}"
                raise ConfigError(
                    f"--{_option(name)} must be numbers from 1{limit}: "
                    f"{show(list(values))}"
                )
        for name, highest in (("margin", math.inf), ("temperature", 100)):
            value = getattr(self, name)
            # A comparison with NaN is False.
            if not 0 <= value <= highest or value == math.inf:
                limit = "on" if highest == math.inf else f"to {highest}"
                raise ConfigError(
                    f"--{name} must be a number from 0 {limit}: {show(value)}"
                )

    def _check(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise ConfigError(
                f"--{_option(name)} must be at least {least}: "
                f"{show(getattr(self, name))}"
            )


def _option(name: str) -> str:
    return {"node_counts": "nodes"}.get(name, name.replace("_", "-"))
