# SPDX-License-Identifier: Apache-2.0
"""The order of runs, with engines that answer by rote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from tests.unit.evaluation.runs import MACHINE, make_run
from vllm_medusa.errors import ConfigError
from vllm_medusa.evaluation import measure
from vllm_medusa.evaluation.engines import Engine
from vllm_medusa.evaluation.measure import Measured, Measurement
from vllm_medusa.evaluation.options import Options
from vllm_medusa.evaluation.prompts import Prompt
from vllm_medusa.evaluation.records import output_key
from vllm_medusa.evaluation.settings import Setting, make_config, plain

CHAINS = [
    Setting("custom", f"chain {n}", make_config("default", tree=f"chain:{n}"))
    for n in (1, 2)
]
WARM = Setting(
    "custom", "warm", make_config("default", tree="chain:2", acceptance="typical"), 0.7
)
Log = list[tuple[str, str, dict[str, Any]]]


class FakeProcess:
    """Answers prompt i with the tokens 0, 1, 2, …, or loops from the third on."""

    def __init__(self, name: str, log: Log, loops: set[str]) -> None:
        self.name, self.log, self.loops = name, log, loops

    def call(self, job: str, *, settle: bool = True, **arguments: Any) -> Any:
        self.log.append((self.name, job, arguments | {"settle": settle}))
        if job == "tokenize":
            return [[7] * len(c[0]["content"]) for c in arguments["conversations"]]
        if job == "score":
            return [
                {"logprobs": [-1.0] * len(ids), "ranks": [1] * len(ids)}
                for _, ids in arguments["sequences"]
            ]
        requests = arguments["requests"]
        texts = [
            [3] * r["max_tokens"]
            if r["name"] in self.loops
            else list(range(r["max_tokens"]))
            for r in requests
        ]
        run = make_run(texts)
        for answer, request in zip(run.answers, requests, strict=True):
            answer.name = request["name"]
        return run.as_dict() | {"machine": MACHINE}

    def finish(self) -> None:
        self.log.append((self.name, "finish", {}))


@pytest.fixture
def evaluate(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[Measurement, Log]]:
    """Make a measurement whose engines are fakes that write into a log."""

    def make(
        settings: Sequence[Setting],
        options: Options,
        prompts: Sequence[str] = ("aa", "bbb"),
        loops: Sequence[str] = (),
        on_block: Callable[[Measured], None] = lambda measured: None,
    ) -> tuple[Measurement, Log]:
        log: Log = []

        def start(
            stack: ExitStack, engines: Sequence[Engine], *rest: Any
        ) -> dict[str, FakeProcess]:
            log.append(("", "start", {"engines": [e.name for e in engines]}))
            return {e.name: FakeProcess(e.name, log, set(loops)) for e in engines}

        monkeypatch.setattr(measure, "start_engines", start)
        asked = [Prompt(text, ({"role": "user", "content": text},)) for text in prompts]
        return Measurement(options, asked, settings, lambda text: None, on_block), log

    return make


def runs(log: Log) -> list[dict[str, Any]]:
    """The timed runs, without the one that looks for loops."""
    return [arguments for _, job, arguments in log if job == "run"][1:]


def test_settings_take_turns_with_plain_back_and_forth(evaluate: Any) -> None:
    seen: list[int] = []
    measurement, log = evaluate(
        CHAINS,
        Options("m", repeats=2, max_tokens=20),
        on_block=lambda measured: seen.append(len(measured.records)),
    )
    measured = measurement.run()
    order = [(r.setting.name, r.turn) for r in measured.records]
    assert order == [
        ("plain", 0),
        ("chain 1", 0),
        ("chain 2", 0),
        ("chain 2", 1),
        ("chain 1", 1),
        ("plain", 1),
    ]
    assert [r.repeat for r in measured.records] == [0, 0, 0, 1, 1, 1]
    assert seen == [6]
    # Both chains are served by one engine; it rests only before another one runs.
    names = [name for name, job, _ in log if job == "run"]
    assert names == ["plain", "plain", *["medusa-1"] * 4, "plain"]
    settled = [arguments["settle"] for arguments in runs(log)]
    assert settled == [True, False, True, False, True, True]
    trees = [arguments["tree"] for arguments in runs(log)]
    assert trees[0] is None
    assert trees[1] == [((0,),), None, 1]
    assert trees[2] == [((0,), (0, 0)), None, 2]
    # Every answer has its score, each text was read once.
    for record in measured.records:
        for answer in record.run.answers:
            assert output_key(answer) in measured.scores
    (scored,) = (a["sequences"] for _, job, a in log if job == "score")
    assert [prompt for prompt, _ in scored] == [[7, 7], [7, 7, 7]]


def test_plain_runs_at_every_temperature_with_the_same_seeds(evaluate: Any) -> None:
    options = Options("m", repeats=2, max_tokens=20, seed=5)
    measurement, log = evaluate([CHAINS[0], WARM], options)
    measured = measurement.run()
    assert {r.setting for r in measured.records if r.setting.config is None} == {
        plain("custom", 0.0),
        plain("custom", 0.7),
    }
    cold, warm = runs(log)[:4], runs(log)[4:]
    for arguments in cold:
        assert [r["seed"] for r in arguments["requests"]] == [None, None]
    seeds = [[r["seed"] for r in arguments["requests"]] for arguments in warm]
    assert seeds == [[5, 6], [5, 6], [7, 8], [7, 8]]
    asked = [arguments["requests"][0]["extra_args"] for arguments in warm]
    assert asked[0] is None is asked[3]
    assert asked[1] == asked[2] == WARM.extra_args()
    assert {r["temperature"] for a in warm for r in a["requests"]} == {0.7}


def test_answers_end_before_they_loop(evaluate: Any) -> None:
    options = Options("m", repeats=1, max_tokens=40)
    measurement, log = evaluate(CHAINS, options, loops=["bbb"])
    measured = measurement.run()
    # "bbb" loops from its ninth token on, too soon to say anything.
    assert measured.lengths == {"aa": 40}
    assert [r["name"] for r in runs(log)[0]["requests"]] == ["aa"]


def test_refused_where_nothing_is_left_to_time(evaluate: Any) -> None:
    options = Options("m", repeats=1, max_tokens=40)
    measurement, _ = evaluate(CHAINS, options, loops=["aa", "bbb"])
    with pytest.raises(ConfigError, match="ends or loops within 16 tokens"):
        measurement.run()


def test_a_prompt_must_fit_the_context(evaluate: Any) -> None:
    options = Options("m", max_tokens=20, max_model_len=24)
    measurement, _ = evaluate(CHAINS, options, prompts=("aa", "bbbb"))
    with pytest.raises(ConfigError, match=r"bbbb has 4 tokens.*leaves room for 3"):
        measurement.run()


def test_groups_of_engines_follow_each_other(evaluate: Any) -> None:
    options = Options("m", repeats=1, engines=2, changes_trees=False, max_tokens=20)
    measurement, log = evaluate(CHAINS, options)
    measured = measurement.run()
    started = [arguments["engines"] for _, job, arguments in log if job == "start"]
    assert started == [["plain", "medusa-1"], ["plain", "medusa-2"]]
    # The prompts are prepared once; each group has its own plain run to compare with.
    assert [job for _, job, _ in log].count("tokenize") == 1
    turns = [(r.setting.name, r.turn) for r in measured.records]
    assert turns == [("plain", 0), ("chain 1", 0), ("plain", 1), ("chain 2", 1)]


@pytest.mark.parametrize(
    "option", ["max_tokens", "repeats", "concurrency", "max_model_len"]
)
def test_numbers_that_cannot_be(option: str) -> None:
    name = option.replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{name} must be at least 1: 0"):
        Options("m", **{option: 0})


def test_plain_runs_often_enough_in_long_suites() -> None:
    many = [
        Setting("custom", f"s{n}", make_config("default", tree="chain:1"), 0.7)
        for n in range(10)
    ]
    blocks = measure.make_blocks([*many, CHAINS[0]])
    assert [[s.name for s in block] for block in blocks] == [
        ["plain", *(f"s{n}" for n in range(8))],
        ["plain", "s8", "s9"],
        ["plain", "chain 1"],
    ]
    assert [block[0].temperature for block in blocks] == [0.7, 0.7, 0.0]
