# SPDX-License-Identifier: Apache-2.0
"""From single runs to figures: medians over repeats, ratios within one repeat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from vllm_medusa.calibration.spread import Spread, spread_or_none
from vllm_medusa.calibration.steps import Answer, Run


def join_runs(runs: Sequence[Run]) -> Run:
    """Runs one after another at the same concurrency as if they were one.

    ValueError if there are none or their concurrency differs.
    """
    if len({run.concurrency for run in runs}) != 1:
        raise ValueError("only runs at one concurrency can be joined")
    counters: dict[str, int] = {}
    for run in runs:
        for name, value in run.counters.items():
            counters[name] = counters.get(name, 0) + value
    return Run(
        concurrency=runs[0].concurrency,
        seconds=sum(run.seconds for run in runs),
        answers=[answer for run in runs for answer in run.answers],
        steps=[step for run in runs for step in run.steps],
        counters=counters,
    )


@dataclass(frozen=True)
class Record:
    """One variant's figures at one concurrency in one repeat.

    `by_category` gives tokens/s (an answer's own clock) and tokens per step; the
    machine's load and CPU seconds lie in `machine`.
    """

    variant: str
    concurrency: int
    answers: str
    repeat: int
    tokens: int
    seconds: float
    tokens_per_second: float
    tokens_per_step: float
    mean_acceptance_length: float | None
    step_seconds: float | None
    mean_running: float
    counters: dict[str, int]
    by_category: dict[str, dict[str, float]]
    mismatches: list[dict[str, Any]]
    machine: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def category_figures(answers: Iterable[Answer]) -> dict[str, dict[str, float]]:
    """Tokens/s and tokens per step by category, the part of a name before its "-"."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.name.rsplit("-", 1)[0], []).append(answer)
    figures = {}
    for category, group in groups.items():
        tokens = sum(len(answer.token_ids) for answer in group)
        steps = sum(answer.steps - 1 for answer in group)
        figures[category] = {
            "tokens_per_second": tokens / sum(answer.seconds for answer in group),
            "tokens_per_step": (tokens - len(group)) / steps if steps else 1.0,
        }
    return figures


def find_mismatches(
    answers: Iterable[Answer], expected: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]]:
    """Answers that are not what plain vLLM said, and where they first differ.

    `expected` may be longer: an answer is compared over its own length.
    """
    mismatches = []
    for answer in answers:
        wanted = list(expected[answer.name])[: len(answer.token_ids)]
        if wanted != answer.token_ids:
            pairs = zip(wanted, answer.token_ids, strict=False)
            position = next(
                (i for i, (a, b) in enumerate(pairs) if a != b), len(wanted)
            )
            mismatches.append({"answer": answer.name, "position": position})
    return mismatches


def make_record(
    variant: str,
    answers: str,
    repeat: int,
    run: Run,
    expected: Mapping[str, Sequence[int]],
    machine: dict[str, float],
) -> Record:
    """The figures of one (joined) run; `answers` names the kind of answer lengths."""
    served = sum(step.requests for step in run.steps)
    return Record(
        variant=variant,
        concurrency=run.concurrency,
        answers=answers,
        repeat=repeat,
        tokens=run.tokens,
        seconds=run.seconds,
        tokens_per_second=run.tokens_per_second,
        tokens_per_step=run.tokens_per_step,
        mean_acceptance_length=run.mean_acceptance_length,
        step_seconds=run.step_seconds(),
        mean_running=served / len(run.steps),
        counters=run.counters,
        by_category=category_figures(run.answers),
        mismatches=find_mismatches(run.answers, expected),
        machine=machine,
    )


@dataclass(frozen=True)
class Summary:
    """One variant at one concurrency over all repeats, against vanilla.

    `speedup` is the ratio of tokens/s and `overhead` that of the step time, both to
    vanilla in the same repeat; speedup is about tokens per step ÷ overhead.
    """

    variant: str
    concurrency: int
    answers: str
    repeats: int
    tokens_per_second: Spread
    tokens_per_step: float
    step_milliseconds: float | None
    overhead: Spread | None
    speedup: Spread
    speedup_by_category: dict[str, float]
    mismatches: int

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def summarise(records: Sequence[Record], baseline: str) -> list[Summary]:
    """One summary per variant, concurrency and kind of answers, in first-seen order.

    With several engine groups the baseline runs in each: a record is compared with the
    baseline's record that came last before or after it in the same repeat, which the
    caller guarantees by giving each group its own `repeat` numbers.
    """
    base = {
        (r.answers, r.concurrency, r.repeat): r
        for r in records
        if r.variant == baseline
    }
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for record in records:
        key = (record.answers, record.concurrency, record.variant)
        groups.setdefault(key, []).append(record)
    return [_summary(group, base) for group in groups.values()]


def _summary(
    group: Sequence[Record], base: Mapping[tuple[str, int, int], Record]
) -> Summary:
    first = group[0]
    partners = [base[(r.answers, r.concurrency, r.repeat)] for r in group]
    pairs = list(zip(group, partners, strict=True))
    overhead = spread_or_none(
        r.step_seconds / b.step_seconds if r.step_seconds and b.step_seconds else None
        for r, b in pairs
    )
    step = spread_or_none(r.step_seconds for r in group)
    ratios: dict[str, list[float]] = {}
    for record, partner in pairs:
        for category, figures in record.by_category.items():
            other = partner.by_category[category]["tokens_per_second"]
            ratios.setdefault(category, []).append(figures["tokens_per_second"] / other)
    return Summary(
        variant=first.variant,
        concurrency=first.concurrency,
        answers=first.answers,
        repeats=len(group),
        tokens_per_second=Spread.of(r.tokens_per_second for r in group),
        tokens_per_step=median(r.tokens_per_step for r in group),
        step_milliseconds=None if step is None else 1000 * step.median,
        overhead=overhead,
        speedup=Spread.of(r.tokens_per_second / b.tokens_per_second for r, b in pairs),
        speedup_by_category={name: median(values) for name, values in ratios.items()},
        mismatches=sum(len(r.mismatches) for r in group),
    )
