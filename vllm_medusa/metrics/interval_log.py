# SPDX-License-Identifier: Apache-2.0
"""The line about Medusa in vLLM's log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from vllm_medusa.metrics.stats import MedusaCounts, MedusaStepStats
from vllm_medusa.timing import OWN_PARTS

if TYPE_CHECKING:
    from vllm.v1.spec_decode.metrics import SpecDecodingStats

logger = init_logger(__name__)


class MedusaLogging:
    """Takes the place of vLLM's `SpecDecodingLogging`, whose rates by position run
    over all nodes of a tree although no path is longer than the tree is deep.

    Keeps sums alone: an interval ends when it is logged, which may be never.

    Attributes:
        counts: of the interval.
        own_seconds: Medusa's own parts of the steps that were timed.
        timed_seconds: those steps.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.reset()

    def reset(self) -> None:
        """Begin another interval."""
        self.counts = MedusaCounts()
        self.own_seconds = self.timed_seconds = 0.0
        self.last_log_time = time.monotonic()

    def observe(self, spec_decoding_stats: SpecDecodingStats) -> None:
        """Take no note of vLLM's own statistics: Medusa's hold the same and more."""

    def observe_medusa(self, stats: MedusaStepStats) -> None:
        """Add what an engine has observed."""
        self.counts.add(stats)
        for parts in stats.parts:
            self.timed_seconds += parts["step"]
            self.own_seconds += sum(parts.get(name, 0.0) for name in OWN_PARTS)

    def log(self, log_fn: Callable[..., None] = logger.info) -> None:
        """Print the line, if there is something to tell, and begin another interval."""
        seconds = time.monotonic() - self.last_log_time
        if self.counts or self.timed_seconds:
            log_fn("%sMedusa: %s", self.prefix, self._describe(seconds))
        self.reset()

    def _describe(self, seconds: float) -> str:
        counts = self.counts
        parts = []
        if num_trees := counts.num_trees:
            num_tokens, num_nodes = _total(counts.tokens), _total(counts.nodes)
            rates = " ".join(f"{100 * n / num_trees:.1f}%" for n in counts.accepted)
            rate = num_trees / seconds if seconds > 0 else 0.0
            parts += [
                f"{num_tokens / num_trees:.2f} tokens per tree",
                f"{num_nodes / num_trees:.1f} nodes per tree",
                f"accepted by depth: {rates or 'none'}",
                f"{rate:.1f} trees/s",
            ]
        else:
            parts.append("no trees")
        if self.own_seconds:
            share = self.own_seconds / self.timed_seconds
            parts.append(f"own parts of a step: {share:.1%}")
        if without := counts.without_tree:
            reasons = ", ".join(f"{reason} {n}" for reason, n in without.items())
            parts.append(f"{sum(without.values())} without a tree ({reasons})")
        return ", ".join(parts)


def _total(counts: Mapping[int, int]) -> int:
    return sum(value * count for value, count in counts.items())
