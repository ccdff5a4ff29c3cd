# SPDX-License-Identifier: Apache-2.0
"""What one engine step tells the front end of Medusa."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.spec_decode.metrics import SpecDecodingStats

Key = TypeVar("Key", int, str)

REASONS = (
    "prompt",
    "preempted",
    "request",
    "load",
    "grammar",
    "max_model_len",
    "token_budget",
)
"""Why a step of a request had no tree; docs/metrics.md says what each means."""


@dataclass
class MedusaCounts:
    """Sums, which take no more room the longer they are kept.

    Attributes:
        tokens: by number of tokens that a tree brought its request: trees.
        nodes: by number of nodes of a tree: trees.
        accepted: at index d trees whose accepted path has a node of depth d + 1.
        without_tree: by reason: steps of requests that brought a token without a tree.
    """

    tokens: dict[int, int] = field(default_factory=dict)
    nodes: dict[int, int] = field(default_factory=dict)
    accepted: list[int] = field(default_factory=list)
    without_tree: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def observe_trees(
        self, num_nodes: int, num_accepted: int, num_tokens: int, count: int = 1
    ) -> None:
        """Count verified trees; `num_tokens` is what each brought its request."""
        self.tokens[num_tokens] = self.tokens.get(num_tokens, 0) + count
        self.nodes[num_nodes] = self.nodes.get(num_nodes, 0) + count
        self.accepted += [0] * (num_accepted - len(self.accepted))
        for depth in range(num_accepted):
            self.accepted[depth] += count

    def observe_without_tree(self, reason: str, count: int = 1) -> None:
        """Count steps of requests without a tree, for one of `REASONS`."""
        self.without_tree[reason] = self.without_tree.get(reason, 0) + count

    def add(self, other: MedusaCounts) -> None:
        """Add what another one holds."""
        _add(self.tokens, other.tokens)
        _add(self.nodes, other.nodes)
        _add(self.without_tree, other.without_tree)
        self.accepted += [0] * (len(other.accepted) - len(self.accepted))
        for depth, count in enumerate(other.accepted):
            self.accepted[depth] += count

    @property
    def num_trees(self) -> int:
        """Verified trees."""
        return sum(self.nodes.values())

    def speculation(self, num_spec_tokens: int) -> SpecDecodingStats | None:
        """Return the same as vLLM counts it, None without trees.

        Args:
            num_spec_tokens: positions that vLLM has counters for, at least the nodes
                of the largest tree.
        """
        if not self.nodes:
            return None
        stats = SpecDecodingStats.new(num_spec_tokens)
        for num_nodes, count in self.nodes.items():
            stats.num_drafts += count
            stats.num_draft_tokens += num_nodes * count
            for position in range(num_nodes):
                stats.num_draft_tokens_per_pos[position] += count
        stats.num_accepted_tokens = sum(self.accepted)
        stats.num_accepted_tokens_per_pos[: len(self.accepted)] = self.accepted
        return stats


def _add(counts: dict[Key, int], others: Mapping[Key, int]) -> None:
    for key, count in others.items():
        counts[key] = counts.get(key, 0) + count


@dataclass
class MedusaStepStats(MedusaCounts):
    """What was observed since the last time that it was taken.

    Attributes:
        step_seconds: of steps in which every request decodes.
        step_has_trees: whether such a step verified trees, in the order of
            `step_seconds`.
        parts: of steps whose parts were timed: seconds by part, see
            `vllm_medusa.timing`; "step" is the whole.
    """

    step_seconds: list[float] = field(default_factory=list)
    step_has_trees: list[bool] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)

    def observe_decode_step(self, seconds: float, has_trees: bool) -> None:
        """Note how long a step took in which every request decodes."""
        self.step_seconds.append(seconds)
        self.step_has_trees.append(has_trees)

    def observe_parts(self, seconds: Mapping[str, float]) -> None:
        """Note where a step's time went."""
        self.parts.append(dict(seconds))


@dataclass
class MedusaSchedulerStats(SchedulerStats):
    """vLLM's statistics of a step, and Medusa's if it has any."""

    medusa: MedusaStepStats | None = None

    @classmethod
    def of(cls, stats: SchedulerStats, medusa: MedusaStepStats) -> MedusaSchedulerStats:
        """Return vLLM's statistics with ours."""
        return cls(**vars(stats), medusa=medusa or None)
