# SPDX-License-Identifier: Apache-2.0
"""How far a run has come: all that the next shard depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Counts of the shards so far.

    Attributes:
        positions: by source, where its next conversation stands.
        ended: sources that have no more.
        prompts: prompts with an answer, by source.
        answers: answers, by source.
        tokens: answer tokens in all.
    """

    positions: dict[str, int] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    prompts: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    tokens: int = 0

    def add(self, shard: Mapping[str, Any]) -> None:
        """Add a shard, as the manifest describes it."""
        self.move_on(shard["positions"], shard["ended"])
        self.prompts.update(shard["prompts_by_source"])
        self.answers.update(shard["answers_by_source"])
        self.tokens += shard["tokens"]

    def move_on(self, positions: Mapping[str, int], ended: Iterable[str]) -> None:
        """Note where the sources stand, and which of them have no more."""
        self.positions.update(positions)
        self.ended.update(ended)

    @property
    def num_prompts(self) -> int:
        """Prompts with an answer, in all."""
        return self.prompts.total()

    def tokens_per_prompt(self) -> float | None:
        """Mean answer tokens that a prompt brought, None before the first."""
        return self.tokens / self.num_prompts if self.num_prompts else None

    def answers_per_prompt(self, source: str, otherwise: float) -> float:
        """Mean answers that a prompt of a source brought."""
        if not self.prompts[source]:
            return otherwise
        return self.answers[source] / self.prompts[source]


def count_records(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of a shard's records, for the manifest."""
    listed = list(records)
    prompts = {record["id"]: record["source"] for record in listed}

    def by(key: str) -> dict[str, int]:
        counts = Counter(str(record[key]) for record in listed)
        return dict(sorted(counts.items()))

    return {
        "prompts": len(prompts),
        "answers": len(listed),
        "tokens": sum(len(record["answer_token_ids"]) for record in listed),
        "prompts_by_source": dict(sorted(Counter(prompts.values()).items())),
        "answers_by_source": by("source"),
        "answers_by_task": by("task"),
        "answers_by_temperature": by("temperature"),
        "answers_by_turn": by("turn"),
        "answers_by_finish": by("finish"),
    }
