# SPDX-License-Identifier: Apache-2.0
"""What is counted for many requests at once is what each of them got."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.unit.metrics.steps import Request, run, scheduled
from vllm_medusa.metrics.step_observer import StepObserver

OFF = {"medusa_num_speculative_tokens": 0}


@pytest.fixture
def observer() -> StepObserver:
    return StepObserver(max_model_len=100, max_num_scheduled_tokens=64)


def test_many_at_once(observer: StepObserver) -> None:
    """Requests of all kinds in one step; of some the end cuts tokens off, of others a
    grammar nodes."""
    names = [f"{kind}{index}" for kind in "abcd" for index in range(3)]
    requests = {name: Request(name) for name in names}
    for name in names:
        if name.startswith("c"):
            requests[name].sampling_params = SimpleNamespace(extra_args=OFF)
    new = scheduled(dict.fromkeys(names, 3), new=tuple(names))
    run(observer, new, requests, dict.fromkeys(names, 1))
    observer.take()
    drafts = {name: 4 for name in names if name[0] in "ab"}
    sizes = {name: 1 + drafts.get(name, 0) for name in names}
    output = scheduled(sizes, drafts, invalid={"b0": 1, "b1": 1})
    gains = {name: 3 if name[0] in "ab" else 1 for name in names}
    run(observer, output, requests, gains, cut={"a0": 1, "a1": 2})
    stats = observer.take()
    assert stats.tokens == {2: 1, 1: 1, 3: 4}
    assert stats.nodes == {4: 4, 3: 2}
    assert stats.accepted == [6, 6]
    assert stats.without_tree == {"request": 3, "token_budget": 3}
    assert stats.step_has_trees == [True]


def test_a_batch_without_trees(observer: StepObserver) -> None:
    """What is known of a request need not be found out again, until it changes."""
    requests = {name: Request(name) for name in "abc"}
    requests["b"].sampling_params = SimpleNamespace(extra_args=OFF)
    both = {"a": 1, "b": 1}
    run(observer, scheduled(both, planned=0, new=("a", "b")), requests, both)
    assert observer.take().without_tree == {"preempted": 2}
    for _ in range(2):
        run(observer, scheduled(both, planned=0), requests, both)
        stats = observer.take()
        assert stats.without_tree == {"load": 1, "request": 1}
        assert stats.step_has_trees == [False]
    # Another one joins; one that is not in the step keeps its reason.
    join = {"a": 1, "c": 7}
    requests["c"].num_output_tokens = 0
    run(observer, scheduled(join, planned=0, new=("c",)), requests, {"a": 1, "c": 1})
    stats = observer.take()
    assert stats.without_tree == {"load": 1, "prompt": 1} and not stats.step_seconds
    # One computes its text anew without having been preempted.
    requests["a"].is_prefill_chunk = True
    again = scheduled({"a": 9, "b": 1, "c": 1}, planned=0)
    run(observer, again, requests, {"b": 1, "c": 1})
    stats = observer.take()
    assert stats.without_tree == {"request": 1, "load": 1} and not stats.step_seconds
    requests["a"].is_prefill_chunk = False
    run(observer, scheduled({"a": 2}, planned=4), requests, {"a": 1})
    assert observer.take().without_tree == {"preempted": 1}
    # Trees come back for those that were in a step which planned them.
    run(observer, scheduled({"c": 1, "b": 1}, planned=4), requests, {"c": 1, "b": 1})
    assert observer.take().without_tree == {"request": 1, "load": 1}
    run(observer, scheduled({"c": 1}, planned=4), requests, {"c": 1})
    assert observer.take().without_tree == {"token_budget": 1}
