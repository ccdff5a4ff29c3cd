# SPDX-License-Identifier: Apache-2.0
"""What the demo found, as numbers and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One answer of one engine.

    `seconds` is wall time; `drafts` counts the steps that verified a tree and
    `accepted` the draft tokens they kept, both by vLLM's own metrics.
    """

    text: str
    token_ids: list[int]
    seconds: float
    drafts: int
    accepted: int


def tokens_per_second(samples: Sequence[Sample]) -> float:
    """Return generated tokens by wall time over all `samples`."""
    tokens = sum(len(sample.token_ids) for sample in samples)
    return tokens / sum(sample.seconds for sample in samples)


def tokens_per_step(samples: Sequence[Sample]) -> float:
    """Return 1 + accepted / drafts, vLLM's mean acceptance length; 1 without drafts."""
    drafts = sum(sample.drafts for sample in samples)
    return 1 + sum(sample.accepted for sample in samples) / drafts if drafts else 1.0


@dataclass(frozen=True)
class PromptResult:
    """One prompt and its answers: `plain[i]` and `medusa[i]` belong to round i."""

    prompt: str
    plain: tuple[Sample, ...]
    medusa: tuple[Sample, ...]

    @property
    def identical(self) -> bool:
        """Whether every answer of both engines has the same tokens."""
        first = self.plain[0].token_ids
        return all(s.token_ids == first for s in (*self.plain, *self.medusa))

    @property
    def speedup(self) -> float:
        """Tokens per second with Medusa over those without."""
        return tokens_per_second(self.medusa) / tokens_per_second(self.plain)

    def as_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {
            "prompt": self.prompt,
            "text": self.plain[0].text,
            "medusa_text": self.medusa[0].text,
            "identical": self.identical,
            "tokens": len(self.plain[0].token_ids),
            "plain_seconds": [sample.seconds for sample in self.plain],
            "medusa_seconds": [sample.seconds for sample in self.medusa],
            "plain_tokens_per_second": tokens_per_second(self.plain),
            "medusa_tokens_per_second": tokens_per_second(self.medusa),
            "tokens_per_step": tokens_per_step(self.medusa),
            "speedup": self.speedup,
        }


@dataclass(frozen=True)
class Report:
    """The results of all prompts (at least one)."""

    results: tuple[PromptResult, ...]

    @property
    def plain(self) -> list[Sample]:
        """All answers of plain vLLM."""
        return [sample for result in self.results for sample in result.plain]

    @property
    def medusa(self) -> list[Sample]:
        """All answers with Medusa."""
        return [sample for result in self.results for sample in result.medusa]

    @property
    def identical(self) -> bool:
        """Whether the answers to every prompt are the same."""
        return all(result.identical for result in self.results)

    @property
    def speedup(self) -> float:
        """Tokens per second with Medusa over those without, all prompts together."""
        return tokens_per_second(self.medusa) / tokens_per_second(self.plain)

    @property
    def round_speedups(self) -> list[float]:
        """The speed-up of each round by itself: how far noise moves the figure."""
        rounds = range(len(self.results[0].plain))
        return [
            tokens_per_second([result.medusa[i] for result in self.results])
            / tokens_per_second([result.plain[i] for result in self.results])
            for i in rounds
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {
            "identical": self.identical,
            "plain_tokens_per_second": tokens_per_second(self.plain),
            "medusa_tokens_per_second": tokens_per_second(self.medusa),
            "tokens_per_step": tokens_per_step(self.medusa),
            "speedup": self.speedup,
            "round_speedups": self.round_speedups,
            "prompts": [result.as_dict() for result in self.results],
        }
