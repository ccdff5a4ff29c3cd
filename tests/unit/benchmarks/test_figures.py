# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from benchmarks.common.figures import (
    Record,
    Spread,
    category_figures,
    find_mismatches,
    join_runs,
    make_record,
    spread_or_none,
    summarise,
)
from vllm_medusa.calibration.steps import Answer, Run, Step


def make_run(seconds: float, *answers: Answer) -> Run:
    steps = [Step(seconds, 1, 1, 1, 1), Step(seconds / 2, 1, 0, 2, 1)]
    return Run(1, seconds, list(answers), steps, {"drafts": 2, "accepted": 1})


def record(variant: str, repeat: int, speed: float, step: float | None) -> Record:
    return Record(
        variant=variant,
        concurrency=1,
        answers="full",
        repeat=repeat,
        tokens=100,
        seconds=100 / speed,
        tokens_per_second=speed,
        tokens_per_step=1.5,
        mean_acceptance_length=None,
        step_seconds=step,
        mean_running=1.0,
        counters={},
        by_category={"math": {"tokens_per_second": speed, "tokens_per_step": 1.5}},
        mismatches=[{"answer": "math-1", "position": 3}] if variant == "odd" else [],
        machine={},
    )


def test_spread_is_median_least_and_greatest() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert str(Spread(1.234, 1.2, 1.3)) == "1.23 (1.20-1.30)"
    assert spread_or_none([None, 2.0]) == Spread(2.0, 2.0, 2.0)
    assert spread_or_none([None]) is None
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_ratios_are_taken_within_a_repeat() -> None:
    # The machine is twice as fast in the second repeat: the ratio doesn't see it.
    records = [
        record("vanilla", 0, 10.0, 0.10),
        record("medusa", 0, 12.0, 0.12),
        record("vanilla", 1, 20.0, 0.05),
        record("medusa", 1, 26.0, 0.06),
    ]
    plain, medusa = summarise(records, "vanilla")
    assert (plain.speedup, plain.variant) == (Spread(1.0, 1.0, 1.0), "vanilla")
    assert medusa.speedup == Spread(pytest.approx(1.25), 1.2, 1.3)
    assert medusa.overhead == Spread(pytest.approx(1.2), pytest.approx(1.2), 1.2)
    assert medusa.tokens_per_second == Spread(19.0, 12.0, 26.0)
    assert medusa.speedup_by_category == {"math": pytest.approx(1.25)}
    assert medusa.step_milliseconds == pytest.approx(90.0)


def test_a_step_that_never_filled_up_has_no_overhead() -> None:
    records = [record("vanilla", 0, 10.0, 0.1), record("odd", 0, 5.0, None)]
    odd = summarise(records, "vanilla")[1]
    assert (odd.overhead, odd.step_milliseconds, odd.mismatches) == (None, None, 1)


def test_joined_runs_add_up() -> None:
    run = join_runs([make_run(2.0, Answer("a")), make_run(3.0, Answer("b"))])
    assert run.seconds == 5.0
    assert run.counters == {"drafts": 4, "accepted": 2}
    assert [answer.name for answer in run.answers] == ["a", "b"]
    assert len(run.steps) == 4
    other = make_run(1.0)
    other.concurrency = 2
    with pytest.raises(ValueError, match="one concurrency"):
        join_runs([run, other])


def test_category_figures_go_by_the_answers_own_clock() -> None:
    answers = [
        Answer("math-1", [1, 2, 3, 4, 5], steps=3, seconds=1.0),
        Answer("math-2", [1, 2, 3], steps=3, seconds=1.0),
        Answer("art-9", [1], steps=1, seconds=0.5),
    ]
    figures = category_figures(answers)
    assert figures["math"] == {"tokens_per_second": 4.0, "tokens_per_step": 1.5}
    assert figures["art"] == {"tokens_per_second": 2.0, "tokens_per_step": 1.0}


def test_mismatches_name_the_first_other_token() -> None:
    expected = {"a": [1, 2, 3, 4], "b": [1, 2], "c": [1, 2]}
    answers = [
        Answer("a", [1, 2, 3]),  # shorter than the expected one: a prefix of it
        Answer("b", [1, 7]),
        Answer("c", [1, 2, 3]),
    ]
    assert find_mismatches(answers, expected) == [
        {"answer": "b", "position": 1},
        {"answer": "c", "position": 2},
    ]


def test_a_record_goes_into_json() -> None:
    answer = Answer("math-1", [1, 2, 3], steps=2, seconds=2.0)
    made = make_record(
        "medusa", "full", 2, make_run(2.0, answer), {"math-1": [1, 2, 3]}, {"x": 1.0}
    )
    data = json.loads(json.dumps(made.as_dict()))
    assert data["tokens_per_second"] == 1.5
    assert data["tokens_per_step"] == 2.0
    assert data["mean_acceptance_length"] == 1.5
    assert data["step_seconds"] == 1.0
    assert data["mismatches"] == []
