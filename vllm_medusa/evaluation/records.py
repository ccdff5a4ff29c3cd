# SPDX-License-Identifier: Apache-2.0
"""From runs to figures: each run against plain vLLM's of the same turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vllm_medusa.calibration.spread import Spread, spread_or_none
from vllm_medusa.calibration.steps import Answer, Run
from vllm_medusa.evaluation.metrics import (
    Quality,
    ReferenceScores,
    Score,
    real_time_factor,
    score_references,
    summarise_scores,
)
from vllm_medusa.evaluation.settings import Setting

OutputKey = tuple[str, tuple[int, ...]]
"""A prompt's name and the tokens of an answer to it."""


def output_key(answer: Answer) -> OutputKey:
    """What the score of an answer is kept under."""
    return answer.name, tuple(answer.token_ids)


@dataclass(frozen=True)
class Record:
    """One run of a setting over all prompts.

    Attributes:
        setting: what was run.
        turn: number shared with the run of plain vLLM that it is compared with.
        repeat: runs of one setting with the same number have the same seeds.
        run: its answers and steps.
        machine: load and CPU seconds meanwhile, from `Load.since`.
    """

    setting: Setting
    turn: int
    repeat: int
    run: Run
    machine: Mapping[str, float]

    @property
    def decode_tokens(self) -> int:
        """Tokens behind each answer's first one."""
        return self.run.tokens - len(self.run.answers)

    @property
    def decode_seconds(self) -> float:
        """From each answer's first token to its last, summed over answers."""
        return sum(a.seconds - a.first_token_seconds for a in self.run.answers)

    def real_time_factor(self, plain: Record) -> float:
        """See `vllm_medusa.evaluation.metrics.real_time_factor`."""
        return real_time_factor(
            self.decode_seconds,
            self.decode_tokens,
            plain.decode_seconds,
            plain.decode_tokens,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON: figures and token ids, not every step."""
        return {
            "suite": self.setting.suite,
            "setting": self.setting.name,
            "temperature": self.setting.temperature,
            "turn": self.turn,
            "repeat": self.repeat,
            "tokens": self.run.tokens,
            "seconds": self.run.seconds,
            "decode_tokens": self.decode_tokens,
            "decode_seconds": self.decode_seconds,
            "tokens_per_step": self.run.tokens_per_step,
            "step_seconds": self.run.step_seconds(),
            "counters": self.run.counters,
            "machine": dict(self.machine),
        }


@dataclass(frozen=True)
class Summary:
    """One setting over all its runs.

    Attributes:
        setting: what was run.
        repeats: how often.
        tokens_per_second: generated tokens by wall time, prompts included.
        tokens_per_step: that a request gains per decode step.
        step_milliseconds: median time of a decode step; None if there was none.
        speedup: tokens per second over plain vLLM's in the same turn.
        overhead: step time over plain vLLM's; speedup is about tokens per step ÷
            overhead.
        real_time_factor: see `vllm_medusa.evaluation.metrics.real_time_factor`.
        quality: of all outputs under the base model, each draw counted once.
        references: against reference answers; None if no prompt has one.
        other_texts: greedy answers that differ from plain vLLM's of the same turn;
            None above temperature 0, where texts are samples.
    """

    setting: Setting
    repeats: int
    tokens_per_second: Spread
    tokens_per_step: Spread
    step_milliseconds: Spread | None
    speedup: Spread
    overhead: Spread | None
    real_time_factor: Spread
    quality: Quality
    references: ReferenceScores | None
    other_texts: int | None

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        fields = asdict(self)
        del fields["setting"]
        return self.setting.as_dict() | fields


def summarise(
    records: Sequence[Record],
    scores: Mapping[OutputKey, Score],
    references: Mapping[str, str],
) -> list[Summary]:
    """One summary per setting, in first-seen order.

    Args:
        records: each turn holds one run of plain vLLM.
        scores: of every answer, by `output_key`.
        references: reference answers by prompt name.
    """
    plain = {r.turn: r for r in records if r.setting.config is None}
    groups: dict[Setting, list[Record]] = {}
    for record in records:
        groups.setdefault(record.setting, []).append(record)
    return [
        _summary(group, [plain[r.turn] for r in group], scores, references)
        for group in groups.values()
    ]


def _summary(
    group: Sequence[Record],
    partners: Sequence[Record],
    scores: Mapping[OutputKey, Score],
    references: Mapping[str, str],
) -> Summary:
    pairs = list(zip(group, partners, strict=True))
    answers = _distinct_draws(group)
    steps = [(r.run.step_seconds(), p.run.step_seconds()) for r, p in pairs]
    milliseconds = [None if own is None else 1000 * own for own, _ in steps]
    compared = [a for a in answers if a.name in references]
    setting = group[0].setting
    return Summary(
        setting=setting,
        repeats=len(group),
        tokens_per_second=Spread.of(r.run.tokens_per_second for r in group),
        tokens_per_step=Spread.of(r.run.tokens_per_step for r in group),
        step_milliseconds=spread_or_none(milliseconds),
        speedup=Spread.of(
            r.run.tokens_per_second / p.run.tokens_per_second for r, p in pairs
        ),
        overhead=spread_or_none(a / b if a and b else None for a, b in steps),
        real_time_factor=Spread.of(r.real_time_factor(p) for r, p in pairs),
        quality=summarise_scores(scores[output_key(a)] for a in answers),
        references=score_references(
            [a.text for a in compared], [references[a.name] for a in compared]
        )
        if compared
        else None,
        other_texts=None if setting.temperature else _other_texts(pairs),
    )


def _distinct_draws(group: Sequence[Record]) -> list[Answer]:
    """All answers, less those that are the same draw again: greedy texts, and texts
    of one seed. As new evidence they would make errors look smaller than they are."""
    draws: dict[tuple[OutputKey, int], Answer] = {}
    for record in group:
        seed = record.repeat if record.setting.temperature else 0
        for answer in record.run.answers:
            draws.setdefault((output_key(answer), seed), answer)
    return list(draws.values())


def _other_texts(pairs: Sequence[tuple[Record, Record]]) -> int:
    count = 0
    for record, plain in pairs:
        expected = {a.name: a.token_ids for a in plain.run.answers}
        count += sum(a.token_ids != expected[a.name] for a in record.run.answers)
    return count
