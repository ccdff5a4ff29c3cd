# SPDX-License-Identifier: Apache-2.0
"""The line about Medusa in vLLM's log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from vllm_medusa.metrics.stats import MedusaStepStats
from vllm_medusa.timing import OWN_PARTS

if TYPE_CHECKING:
    from vllm.v1.spec_decode.metrics import SpecDecodingStats

logger = init_logger(__name__)


class MedusaLogging:
    """Takes the place of vLLM's `SpecDecodingLogging`, whose rates by position run
    over all nodes of a tree although no path is longer than the tree is deep."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.reset()

    def reset(self) -> None:
        """Begin another interval."""
        self.stats = MedusaStepStats()
        self.last_log_time = time.monotonic()

    def observe(self, spec_decoding_stats: SpecDecodingStats) -> None:
        """Take no note of vLLM's own statistics: Medusa's hold the same and more."""

    def observe_medusa(self, stats: MedusaStepStats) -> None:
        """Add what an engine has observed."""
        self.stats.add(stats)

    def log(self, log_fn: Callable[..., None] = logger.info) -> None:
        """Print the line, if there is something to tell, and begin another interval."""
        seconds = time.monotonic() - self.last_log_time
        if self.stats:
            log_fn("%sMedusa: %s", self.prefix, describe(self.stats, seconds))
        self.reset()


def describe(stats: MedusaStepStats, seconds: float) -> str:
    """Return what was observed in an interval in words."""
    parts = []
    if num_trees := stats.num_trees:
        num_tokens, num_nodes = _total(stats.tokens), _total(stats.nodes)
        rates = " ".join(f"{100 * n / num_trees:.1f}%" for n in stats.accepted)
        rate = num_trees / seconds if seconds > 0 else 0.0
        parts += [
            f"{num_tokens / num_trees:.2f} tokens per tree",
            f"{num_nodes / num_trees:.1f} nodes per tree",
            f"accepted by depth: {rates or 'none'}",
            f"{rate:.1f} trees/s",
        ]
    else:
        parts.append("no trees")
    if share := _own_share(stats.parts):
        parts.append(f"own parts of a step: {share:.1%}")
    if stats.without_tree:
        reasons = ", ".join(f"{r} {n}" for r, n in stats.without_tree.items())
        parts.append(f"{sum(stats.without_tree.values())} without a tree ({reasons})")
    return ", ".join(parts)


def _total(counts: Mapping[int, int]) -> int:
    return sum(value * count for value, count in counts.items())


def _own_share(steps: Sequence[Mapping[str, float]]) -> float:
    whole = sum(parts["step"] for parts in steps)
    own = sum(parts.get(name, 0.0) for parts in steps for name in OWN_PARTS)
    return own / whole if whole else 0.0
