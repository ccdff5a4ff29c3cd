# SPDX-License-Identifier: Apache-2.0
"""Which step costs are measured, with a timer that knows the true ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_medusa.calibration.measure import StepTimer, measure_step_costs
from vllm_medusa.calibration.table import choose_table
from vllm_medusa.errors import ConfigError

TOKENS = {0: 1.0, 1: 1.4, 2: 1.6, 4: 1.8, 8: 1.9, 16: 2.0, 31: 2.05}
COUNTS = (1, 2, 4, 8, 16, 31)


class Timer:
    """In place of `StepTimer`: step seconds by a formula, every reading counted."""

    def __init__(self, cost: Callable[[int, int], float]) -> None:
        self.cost = cost
        self.order: list[tuple[int, int]] = []

    @property
    def readings(self) -> Counter[tuple[int, int]]:
        return Counter(self.order)

    def step_seconds(self, requests: int, nodes: int, steps: int) -> float:
        self.order.append((requests, nodes))
        return self.cost(requests, nodes)


def measure(timer: Any, sizes: tuple[int, ...], **options: Any) -> Any:
    return measure_step_costs(
        timer, sizes, COUNTS, TOKENS, steps=4, repeats=3, **options
    )


def test_all_counts_are_read_in_every_repeat_while_they_are_cheap() -> None:
    timer = Timer(lambda requests, nodes: 1.0)
    costs = measure(timer, (1, 2), max_rows=64)
    assert costs == {b: dict.fromkeys((0, *COUNTS), 1.0) for b in (1, 2)}
    assert set(timer.readings.values()) == {3}
    first = [nodes for _, nodes in timer.order[: len(COUNTS) + 1]]
    assert first == [0, *COUNTS]


def test_no_step_has_more_rows_than_allowed() -> None:
    timer = Timer(lambda requests, nodes: 1.0)
    costs = measure(timer, (4, 100), max_rows=20)
    assert list(costs[4]) == [0, 1, 2, 4]
    # A plain step is always measured: without it there is no speed-up.
    assert list(costs[100]) == [0]


def test_larger_counts_are_not_tried_after_two_hopeless_ones() -> None:
    timer = Timer(lambda requests, nodes: float(1 + nodes))
    costs = measure(timer, (1,), max_rows=64)
    # Speed-ups 0.7, 0.53, 0.36: the second hopeless one in a row is the last.
    assert list(costs[1]) == [0, 1, 2]


def test_one_slow_reading_does_not_end_the_search() -> None:
    spoiled = [True]

    def cost(requests: int, nodes: int) -> float:
        if nodes == 2 and spoiled.pop() if spoiled else False:
            return 50.0
        return 1.0

    timer = Timer(cost)
    costs = measure(timer, (1,), max_rows=64)
    assert list(costs[1]) == [0, *COUNTS]


def test_the_median_forgives_an_outlier_and_the_table_follows() -> None:
    readings: Counter[int] = Counter()

    def cost(requests: int, nodes: int) -> float:
        readings[nodes] += 1
        true = 1.0 + 0.05 * nodes
        return 10 * true if nodes == 8 and readings[8] == 1 else true

    costs = measure(Timer(cost), (1,), max_rows=64)
    assert costs[1][8] == 1.4
    assert choose_table(costs, TOKENS) == [(1, 1, 4)]


class ShortEngine:
    """Requests that end after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = self.left = steps
        self.names: list[str] = []
        self.nodes: set[int] = set()

    def add_request(self, name: str, prompt: Any, params: Any) -> None:
        self.names.append(name)
        self.nodes.add(params.extra_args["medusa_num_speculative_tokens"])
        self.left = self.steps

    def abort_request(self, names: list[str]) -> None:
        assert names == self.names
        self.names, self.left = [], 0

    def has_unfinished_requests(self) -> bool:
        return self.left > 0

    def step(self) -> list[Any]:
        self.left -= 1
        return [SimpleNamespace(request_id=name) for name in self.names]


def step_timer(engine: ShortEngine) -> StepTimer:
    llm: Any = SimpleNamespace(llm_engine=engine)
    return StepTimer(llm, [[1], [2, 3]], max_tokens=engine.steps)


def test_every_reading_has_requests_of_its_own_with_their_nodes() -> None:
    # The prompts' step, three steps to settle, five to time.
    engine = ShortEngine(9)
    timer = step_timer(engine)
    for nodes in (0, 7):
        assert timer.step_seconds(3, nodes, 5) >= 0
        assert (engine.nodes, engine.names) == ({nodes}, [])
        engine.nodes.clear()


def test_requests_that_end_too_soon_are_an_error_and_no_endless_loop() -> None:
    with pytest.raises(ConfigError, match=r"context of 8 tokens .* fewer --steps"):
        step_timer(ShortEngine(8)).step_seconds(1, 0, 5)
