# SPDX-License-Identifier: Apache-2.0
"""Every token is counted once: by its tree, or by why there was none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.metrics.steps import Request, finish, run, scheduled
from vllm_medusa.metrics import step_observer
from vllm_medusa.metrics.step_observer import StepObserver

MAX_MODEL_LEN, BUDGET = 100, 32


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(value=0.0)
    monkeypatch.setattr(
        step_observer, "time", SimpleNamespace(perf_counter=lambda: now.value)
    )
    return now


@pytest.fixture
def observer(clock: SimpleNamespace) -> StepObserver:
    return StepObserver(MAX_MODEL_LEN, BUDGET)


def test_a_request_from_its_prompt_to_its_trees(observer: StepObserver) -> None:
    request = Request("a", is_prefill_chunk=True, num_output_tokens=0)
    requests = {"a": request}
    run(observer, scheduled({"a": 8}, new=("a",)), requests, {})
    assert not observer.stats
    request.is_prefill_chunk = False
    run(observer, scheduled({"a": 1}), requests, {"a": 1})
    request.num_output_tokens = 1
    run(observer, scheduled({"a": 5}, {"a": 4}), requests, {"a": 3})
    run(observer, scheduled({"a": 3}, {"a": 2}), requests, {"a": 1})
    stats = observer.take()
    assert stats.without_tree == {"prompt": 1}
    assert stats.tokens == {3: 1, 1: 1}
    assert stats.nodes == {4: 1, 2: 1}
    assert stats.accepted == [1, 1]
    # The chunk and the prompt's last token are no decode steps.
    assert stats.step_has_trees == [True, True]
    assert not observer.take()


@pytest.mark.parametrize(
    ("planned", "change", "reason"),
    [
        (0, {}, "load"),
        (4, {"num_computed_tokens": MAX_MODEL_LEN - 1}, "max_model_len"),
        (4, {"use_structured_output": True}, "grammar"),
        (4, {}, "token_budget"),
        (
            4,
            {
                "sampling_params": SimpleNamespace(
                    extra_args={"medusa_num_speculative_tokens": 0}
                )
            },
            "request",
        ),
    ],
)
def test_reasons(
    observer: StepObserver, planned: int, change: dict[str, Any], reason: str
) -> None:
    requests = {"a": Request("a")}
    first = scheduled({"a": 8}, planned=planned, new=("a",))
    run(observer, first, requests, {"a": 1})
    observer.take()
    vars(requests["a"]).update(change)
    run(observer, scheduled({"a": 1}), requests, {"a": 1})
    stats = observer.take()
    assert stats.without_tree == {reason: 1}
    assert stats.step_has_trees == [False]


def test_a_full_step_is_not_the_grammars_fault(observer: StepObserver) -> None:
    requests = {
        "a": Request("a", use_structured_output=True, num_output_tokens=0),
        "b": Request("b", is_prefill_chunk=True),
    }
    run(observer, scheduled({"a": 3}, new=("a",)), requests, {"a": 1})
    run(observer, scheduled({"a": 1, "b": 31}, new=("b",)), requests, {"a": 1})
    assert observer.take().without_tree == {"prompt": 1, "token_budget": 1}


def test_preemption(observer: StepObserver) -> None:
    requests = {"a": Request("a", num_output_tokens=0), "b": Request("b")}
    both = scheduled({"a": 8, "b": 8}, new=("a", "b"))
    run(observer, both, requests, {"a": 1, "b": 1})
    observer.take()
    requests["a"].num_output_tokens = 5
    alone = scheduled({"b": 5}, {"b": 4}, preempted=("a",))
    run(observer, alone, requests, {"b": 1})
    again = scheduled({"a": 12, "b": 5}, {"b": 4}, resumed=("a",))
    run(observer, again, requests, {"a": 1, "b": 1})
    stats = observer.take()
    assert stats.without_tree == {"preempted": 1}
    assert stats.tokens == {1: 2}
    # The second one computes a text anew.
    assert stats.step_has_trees == [True]


@pytest.mark.parametrize("how", ["new", "resumed"])
def test_placeholders_are_no_trees(observer: StepObserver, how: str) -> None:
    requests = {"a": Request("a", num_output_tokens=0 if how == "new" else 3)}
    joins: dict[str, Any] = {how: ("a",)}
    run(observer, scheduled({"a": 5}, {"a": 4}, **joins), requests, {"a": 1})
    stats = observer.take()
    assert stats.without_tree == {"prompt" if how == "new" else "preempted": 1}
    assert not stats.tokens and not stats.step_seconds


def test_a_request_that_ends_is_forgotten(observer: StepObserver) -> None:
    """Another one may have its name."""
    requests = {"a": Request("a", num_output_tokens=0)}
    run(observer, scheduled({"a": 8}, new=("a",)), requests, {"a": 1})
    again = scheduled({"a": 8}, new=("a",), finished=("a",))
    run(observer, again, requests, {"a": 1})
    assert observer.take().without_tree == {"prompt": 2}


def test_steps_that_are_scheduled_ahead(
    observer: StepObserver, clock: SimpleNamespace
) -> None:
    """A step begins when it is scheduled or the one before it ends."""
    requests = {"a": Request("a")}
    run(observer, scheduled({"a": 8}, new=("a",)), requests, {"a": 1})
    observer.take()
    steps = [scheduled({"a": 5}, {"a": 4}) for _ in range(3)]
    observer.scheduled(1.0, steps[0], requests)
    observer.scheduled(1.5, steps[1], requests)
    clock.value = 3.0
    finish(observer, steps[0], {"a": 2}, parts={"step": 0.5})
    clock.value = 4.0
    finish(observer, steps[1], {})
    observer.scheduled(6.0, steps[2], requests)
    clock.value = 6.25
    finish(observer, steps[2], {})
    stats = observer.take()
    assert stats.step_seconds == [2.0, 1.0, 0.25]
    assert stats.parts == [{"step": 0.5}]
    assert stats.tokens == {2: 1}


def test_a_result_that_never_came_does_not_stop_the_count(
    observer: StepObserver,
) -> None:
    requests = {"a": Request("a")}
    lost = scheduled({"a": 8}, new=("a",))
    observer.scheduled(0.0, lost, requests)
    run(observer, scheduled({"a": 5}, {"a": 4}), requests, {"a": 1})
    assert observer.take().tokens == {1: 1}


def test_empty_steps_between_others(
    observer: StepObserver, clock: SimpleNamespace
) -> None:
    """A scheduler that runs ahead may find nothing to schedule."""
    requests = {"a": Request("a", num_output_tokens=0)}
    step, empty = scheduled({"a": 8}, new=("a",)), scheduled({})
    observer.scheduled(0.0, empty, requests)
    observer.scheduled(0.0, step, requests)
    finish(observer, empty, {})
    finish(observer, scheduled({}), {})
    finish(observer, step, {"a": 1})
    stats = observer.take()
    assert stats.without_tree == {"prompt": 1}
    assert not stats.step_seconds
    observer.scheduled(0.0, scheduled({}, finished=("a",)), requests)
    run(observer, scheduled({"a": 8}, new=("a",)), requests, {"a": 1})
    assert observer.take().without_tree == {"prompt": 1}


def test_results_of_a_step_that_was_not_seen(observer: StepObserver) -> None:
    finish(observer, scheduled({"a": 5, "b": 1}, {"a": 4}), {"a": 2, "b": 1})
    stats = observer.take()
    assert stats.tokens == {2: 1} and not stats.without_tree
