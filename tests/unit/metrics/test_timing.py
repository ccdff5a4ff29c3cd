# SPDX-License-Identifier: Apache-2.0
"""Which steps are timed, and what of them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_medusa import timing

TREES = SimpleNamespace(
    num_scheduled_tokens={"a": 5, "b": 1},
    scheduled_spec_decode_tokens={"a": [1, 2, 3, 4]},
    total_num_scheduled_tokens=6,
)
WITH_PROMPT = SimpleNamespace(
    num_scheduled_tokens={"a": 5, "b": 7},
    scheduled_spec_decode_tokens={"a": [1, 2, 3, 4]},
    total_num_scheduled_tokens=12,
)
PLAIN = SimpleNamespace(
    num_scheduled_tokens={"a": 1},
    scheduled_spec_decode_tokens={},
    total_num_scheduled_tokens=1,
)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock that advances by 1 s at each reading."""
    readings = iter(range(10_000))
    monkeypatch.setattr(
        timing,
        "time",
        SimpleNamespace(perf_counter=lambda: float(next(readings))),
    )
    monkeypatch.setattr(timing, "INTERVAL", 3)
    timing.reset_samples()
    timing.read()
    yield SimpleNamespace(next=lambda: next(readings))
    timing.reset_samples()
    timing.read()


def step(output: Any) -> dict[str, float] | None:
    timing.begin_step(output)
    with timing.measure("propose"):
        pass
    with timing.measure("move"):
        pass
    timing.end_step()
    return timing.take_sample()


def test_one_step_with_trees_in_so_many_is_timed(clock: SimpleNamespace) -> None:
    timed = [step(TREES) for _ in range(6)]
    assert [sample is not None for sample in timed] == [False, False, True] * 2
    # Between its first and its last reading lie those of its parts.
    assert timed[2] == {"propose": 1.0, "move": 1.0, "step": 5.0}
    # Six readings each: the others have not looked at the clock.
    assert clock.next() == 12
    assert timing.read() == {}


def test_steps_with_prompts_and_without_trees_wait() -> None:
    assert [step(TREES) for _ in range(2)] == [None, None]
    assert [step(PLAIN) for _ in range(5)] == [None] * 5
    assert [step(WITH_PROMPT) for _ in range(5)] == [None] * 5
    assert step(TREES) is not None
    assert step(TREES) is None


def test_a_step_that_was_never_ended_is_dropped() -> None:
    for _ in range(2):
        step(TREES)
    timing.begin_step(TREES)
    timing.begin_step(PLAIN)
    with timing.measure("propose"):
        pass
    timing.end_step()
    assert timing.take_sample() is None


def test_reset() -> None:
    for _ in range(2):
        step(TREES)
    timing.reset_samples()
    assert [step(TREES) is None for _ in range(3)] == [True, True, False]


def test_every_step_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_always", True)
    for output in (PLAIN, WITH_PROMPT, TREES, TREES):
        step(output)
    times = timing.read()
    assert times["step"]["calls"] == times["propose"]["calls"] == 4
    assert times["move"]["seconds"] == 4.0
    assert timing.read() == {}


class Event:
    """A device's clock of one second per event, which has passed those before `now`."""

    now = 0
    made: list[Event]

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.time: int | None = None

    def record(self) -> None:
        self.time = len(self.made)
        self.made.append(self)

    def query(self) -> bool:
        assert self.time is not None
        return self.time < Event.now

    def elapsed_time(self, end: Event) -> float:
        assert end.query(), "the device has not been there"
        assert self.time is not None and end.time is not None
        return 1e3 * (end.time - self.time)


def test_a_devices_clock_is_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times come with a later step, in order."""
    monkeypatch.setattr(timing, "_on_device", True)
    monkeypatch.setattr(timing, "torch", SimpleNamespace(Event=Event))
    monkeypatch.setattr(Event, "made", [], raising=False)
    monkeypatch.setattr(Event, "now", 0)
    assert [step(TREES) for _ in range(6)] == [None] * 6
    assert len(Event.made) == 12
    Event.now = 5
    assert step(PLAIN) is None
    Event.now = 6
    assert step(PLAIN) == {"propose": 1.0, "move": 1.0, "step": 5.0}
    assert step(PLAIN) is None
    Event.now = 100
    assert step(PLAIN) is not None
    assert step(PLAIN) is None
