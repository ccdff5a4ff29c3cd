# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_medusa.calibration.table import (
    choose_nodes,
    choose_table,
    compress,
    interpolate_costs,
    speedups,
)
from vllm_medusa.errors import ConfigError


def total(gains: list[dict[int, float]], nodes: tuple[int, ...]) -> float:
    return sum(
        math.log(gain[count]) if count else 0.0
        for gain, count in zip(gains, nodes, strict=True)
    )


def brute_force(gains: list[dict[int, float]], margin: float) -> float:
    """The best total over every non-increasing sequence that keeps the margin."""
    options = [
        [0, *(count for count, value in gain.items() if value >= 1 + margin)]
        for gain in gains
    ]
    return max(
        total(gains, nodes)
        for nodes in itertools.product(*options)
        if all(a >= b for a, b in itertools.pairwise(nodes))
    )


gain_rows = st.dictionaries(
    st.sampled_from([1, 2, 4, 8, 16]), st.floats(0.2, 3.0), max_size=5
)


@given(st.lists(gain_rows, min_size=1, max_size=5), st.sampled_from([0.0, 0.03, 0.2]))
def test_choice_is_the_true_optimum(
    gains: list[dict[int, float]], margin: float
) -> None:
    nodes = choose_nodes(gains, margin)
    assert len(nodes) == len(gains)
    assert all(a >= b for a, b in itertools.pairwise(nodes))
    for gain, count in zip(gains, nodes, strict=True):
        assert count == 0 or gain[count] >= 1 + margin
    assert total(gains, tuple(nodes)) == pytest.approx(brute_force(gains, margin))


def test_equal_gains_take_fewer_nodes() -> None:
    assert choose_nodes([{2: 1.2, 8: 1.2}]) == [2]


def test_a_gain_below_the_margin_is_not_taken() -> None:
    assert choose_nodes([{4: 1.02}], margin=0.03) == [0]
    assert choose_nodes([{4: 1.02}], margin=0.01) == [4]


def test_a_rise_with_more_requests_is_smoothed_away() -> None:
    # Alone, two requests would take 8 nodes; one request loses more with 8 than two
    # gain, so both take 4.
    gains = [{4: 1.5, 8: 1.1}, {4: 1.3, 8: 1.31}]
    assert choose_nodes(gains) == [4, 4]


def test_table_of_a_machine_that_saturates() -> None:
    # A step costs 1 up to four rows and then grows with them, as roofline has it.
    costs = {
        requests: {
            nodes: max(1.0, requests * (nodes + 1) / 4) for nodes in (0, 1, 3, 7)
        }
        for requests in (1, 2, 4, 8)
    }
    tokens = {1: 1.4, 3: 1.8, 7: 2.1}
    table = choose_table(costs, tokens, margin=0.03)
    assert table == [(1, 1, 3), (2, 2, 1), (3, 8, 0)]


def test_costs_between_measured_sizes_are_linear() -> None:
    costs = {2: {0: 1.0, 4: 2.0}, 4: {0: 3.0}}
    assert interpolate_costs(costs, 3) == {0: 2.0}
    assert interpolate_costs(costs, 1) == {0: 1.0, 4: 2.0}
    assert interpolate_costs(costs, 9) == {0: 3.0}


def test_speedup_is_tokens_per_step_over_overhead() -> None:
    assert speedups({0: 2.0, 4: 3.0, 8: 5.0}, {4: 1.8}) == {4: pytest.approx(1.2)}


def test_ranges_join_and_cover_every_size() -> None:
    assert compress([4, 4, 2, 0, 0]) == [(1, 2, 4), (3, 3, 2), (4, 5, 0)]


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({}, "no step costs"),
        ({2: {4: 1.0}}, "no cost of a plain step with 2"),
        ({1: {0: 1.0, 4: 0.0}}, "4 node"),
        ({1: {0: float("nan")}}, "0 node"),
    ],
)
def test_impossible_costs_are_refused(
    costs: dict[int, dict[int, float]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_table(costs, {4: 2.0})
