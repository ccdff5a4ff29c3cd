# SPDX-License-Identifier: Apache-2.0
"""The closed loop against a scripted engine with `LLMEngine`'s methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm_medusa.calibration.steps import Request, run_requests


@dataclass
class ScriptedEngine:
    """Gives every request one token in its first step, then two, up to max_tokens."""

    left: dict[str, int] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    most_running: int = 0
    drafts: int = 0

    def add_request(self, name: str, prompt: dict[str, Any], params: Any) -> None:
        assert params.temperature == 0.0
        self.left[name] = params.max_tokens
        self.most_running = max(self.most_running, len(self.left))

    def step(self) -> list[Any]:
        outputs = []
        for name, left in list(self.left.items()):
            count = min(left, 2 if name in self.begun else 1)
            self.drafts += name in self.begun
            self.begun.add(name)
            self.left[name] -= count
            finished = self.left[name] == 0
            if finished:
                del self.left[name]
                self.begun.discard(name)
            completion = SimpleNamespace(token_ids=[3] * count, text="x" * count)
            outputs.append(
                SimpleNamespace(
                    request_id=name, outputs=[completion], finished=finished
                )
            )
        return outputs


@dataclass
class ScriptedLLM:
    llm_engine: ScriptedEngine = field(default_factory=ScriptedEngine)

    def get_metrics(self) -> list[Any]:
        name = "vllm:spec_decode_num_drafts"
        return [SimpleNamespace(name=name, value=self.llm_engine.drafts)]


def requests(*lengths: int) -> list[Request]:
    return [Request(f"q-{i}", [1, 2], length) for i, length in enumerate(lengths)]


def test_keeps_the_concurrency_and_answers_everything() -> None:
    llm: Any = ScriptedLLM()
    run = run_requests(llm, requests(5, 3, 4, 1), 2)
    assert llm.llm_engine.most_running == 2
    assert [len(answer.token_ids) for answer in run.answers] == [5, 3, 4, 1]
    assert [answer.text for answer in run.answers] == ["xxxxx", "xxx", "xxxx", "x"]
    assert sum(step.tokens for step in run.steps) == run.tokens == 13
    assert sum(step.first_tokens for step in run.steps) == 4
    assert sum(step.requests for step in run.steps) == sum(
        answer.steps for answer in run.answers
    )


def test_counters_are_of_this_run_alone() -> None:
    llm: Any = ScriptedLLM()
    run_requests(llm, requests(5), 1)
    run = run_requests(llm, requests(5, 3), 1)
    assert run.counters == {"drafts": 3, "draft_tokens": 0, "accepted": 0}


def test_the_same_question_twice_stays_two_answers() -> None:
    llm: Any = ScriptedLLM()
    run = run_requests(llm, requests(4) * 2, 2)
    assert [answer.name for answer in run.answers] == ["q-0", "q-0"]
    assert run.tokens == 8


def test_prompts_done_is_told_once_when_all_have_a_token() -> None:
    llm: Any = ScriptedLLM()
    begun: list[int] = []
    run_requests(
        llm,
        requests(5, 3, 4),
        2,
        on_prompts_done=lambda: begun.append(len(llm.llm_engine.begun)),
    )
    # Once, while the two started first were running.
    assert begun == [2]


def test_no_concurrency_is_refused() -> None:
    llm: Any = ScriptedLLM()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        run_requests(llm, requests(1), 0)
