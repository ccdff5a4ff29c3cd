# SPDX-License-Identifier: Apache-2.0
"""What the benchmark scripts compute themselves, and the files that they write."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from benchmarks import latency, serving, step_parts, throughput
from benchmarks.common.figures import Summary
from benchmarks.common.options import parse_numbers
from benchmarks.common.plots import plot_serving, plot_speedups, plot_throughput
from benchmarks.common.results import write_result
from vllm_medusa.calibration.spread import Spread
from vllm_medusa.calibration.steps import Request
from vllm_medusa.evaluation.questions import Question

PNG = b"\x89PNG\r\n"


def make_plan(**expected: list[int]) -> latency.Plan:
    plan = latency.Plan([Question(1, "math", ("?",))], 64, ["loop-free"])
    plan.prompts = {name: [1, 2, 3] for name in expected}
    plan.expected = expected
    return plan


def test_loop_free_answers_stop_before_the_loop() -> None:
    sentence = list(range(20))
    plan = make_plan(good=list(range(40)), loops=sentence * 2, bad=[7] * 40)
    lengths = {r.name: r.max_tokens for r in plan.requests("loop-free")}
    # "bad" loops from its ninth token on: too little is left to time.
    assert lengths == {"good": 40, "loops": 27}
    lengths = {r.name: r.max_tokens for r in plan.requests("full")}
    assert lengths == {"good": 40, "loops": 40, "bad": 40}


def test_chunks_fill_the_concurrency_twice_longest_first() -> None:
    requests = [Request(str(n), [1], n) for n in range(1, 11)]
    parts = latency.chunks(requests, 4)
    assert [[r.max_tokens for r in part] for part in parts] == [
        [8, 7, 6, 5, 4, 3, 2, 1],
        [10, 9],
    ]
    assert [len(part) for part in latency.chunks(requests, 1)] == [4, 4, 2]


def test_machine_figures_are_joined() -> None:
    part = {
        "wall_seconds": 2.0,
        "machine_cpu_seconds": 3.0,
        "own_cpu_seconds": 2.5,
        "load_before": 1.0,
        "load_after": 2.0,
    }
    joined = latency.join_machine([part, part | {"load_after": 4.0}])
    assert joined == {
        "wall_seconds": 4.0,
        "machine_cpu_seconds": 6.0,
        "own_cpu_seconds": 5.0,
        "load_before": 1.0,
        "load_after": 4.0,
    }


def test_prompts_of_a_batch_repeat_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [Question(1, "math", ("a", "b")), Question(2, "art", ("c", "d"))]
    monkeypatch.setattr(throughput, "load_questions", lambda: questions)
    assert throughput.make_prompts(6) == ["a", "c", "b", "d", "a", "c"]


def test_number_of_requests_follows_the_rate() -> None:
    assert serving.num_prompts(2.0, 30, 40) == 40
    assert serving.num_prompts(0.5, 30, 40) == 15
    assert serving.num_prompts(0.01, 30, 40) == 4
    assert serving.num_prompts(float("inf"), 30, 40) == 40


def test_shares_of_a_step_are_per_step() -> None:
    timing = {
        "step": {"seconds": 2.0, "calls": 10},
        "attention": {"seconds": 0.1, "calls": 300},
        "propose": {"seconds": 0.05, "calls": 10},
        "draw": {"seconds": 0.02, "calls": 10},
        "verify": {"seconds": 0.01, "calls": 10},
        "move": {"seconds": 0.01, "calls": 10},
    }
    shares = step_parts.step_shares(timing)
    assert shares["step"] == {"seconds": 0.2, "share": 1.0}
    assert shares["attention"]["seconds"] == pytest.approx(0.01)
    assert shares["move"]["share"] == pytest.approx(0.005)
    assert shares["added"]["share"] == pytest.approx(0.095)
    with pytest.raises(ValueError, match="no steps were timed"):
        step_parts.step_shares({})


def test_numbers_on_the_command_line() -> None:
    assert parse_numbers("1,2,8") == [1, 2, 8]
    for wrong in ("1,x", "0", ""):
        with pytest.raises(ArgumentTypeError, match="numbers"):
            parse_numbers(wrong)


def test_a_result_names_its_machine_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "latency.json"
    words = ["--heads", "/of/this/machine/heads", "--output=/some/where/x.json"]
    more = ["--variants", "medusa:/trees/a.json", "--model", "org/model"]
    monkeypatch.setattr(sys, "argv", ["/repo/benchmarks/latency.py", *words, *more])
    write_result(path, "latency", {"records": [1, 2]})
    document = json.loads(path.read_text())
    assert document["schema"] == 1
    assert document["benchmark"] == "latency"
    assert document["command"] == (
        "python -m benchmarks.latency --heads heads --output=x.json "
        "--variants medusa:a.json --model org/model"
    )
    assert document["machine"]["versions"]["python"]
    assert document["records"] == [1, 2]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(path, "latency", {"records": [float("nan")]})
    assert json.loads(path.read_text()) == document


def summary(variant: str, concurrency: int, speedup: float) -> Summary:
    return Summary(
        variant=variant,
        concurrency=concurrency,
        answers="full",
        repeats=1,
        tokens_per_second=Spread(1.0, 1.0, 1.0),
        tokens_per_step=1.5,
        step_milliseconds=None,
        overhead=None,
        speedup=Spread(speedup, speedup - 0.1, speedup + 0.1),
        speedup_by_category={"math": speedup, "art": 1.0},
        mismatches=0,
    )


def test_plots_are_pictures(tmp_path: Path) -> None:
    summaries = [summary(v, c, 1.2) for v in ("vanilla", "medusa") for c in (1, 4)]
    plot_speedups(tmp_path / "a.png", summaries)
    plot_throughput(tmp_path / "b.png", {"vanilla": Spread(9.0, 8.0, 10.0)})
    point = {"median_ttft_ms": 1, "median_tpot_ms": 2, "output_throughput": 3}
    points = {"vanilla": [point | {"rate": 1.0}, point | {"rate": "inf"}]}
    plot_serving(tmp_path / "c.png", points)
    for name in "abc":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
