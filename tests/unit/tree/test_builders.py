# SPDX-License-Identifier: Apache-2.0
"""The builders, the optimal one against every tree there is."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_medusa.errors import TreeError
from vllm_medusa.tree import (
    MAX_NODES,
    MAX_RANKS,
    cartesian,
    chain,
    expected_tokens,
    node_gains,
    optimal,
    published,
    published_names,
)


@st.composite
def tables(draw: st.DrawFn, max_heads: int = 4, max_ranks: int = 5):
    """Tables of accuracies; rows sum to at most 1 and need not fall."""
    heads = draw(st.integers(1, max_heads))
    ranks = draw(st.integers(1, max_ranks))
    table = []
    for _ in range(heads):
        weights = draw(st.lists(st.integers(0, 9), min_size=ranks, max_size=ranks))
        rest = draw(st.integers(1, 9))
        table.append([weight / (sum(weights) + rest) for weight in weights])
    return table


def possible_nodes(table):
    return sum(len(table[0]) ** depth for depth in range(1, len(table) + 1))


def best_by_trying_all(table, num_nodes):
    """Most expected tokens of any prefix-closed set of `num_nodes` paths."""
    ranks = range(len(table[0]))
    gains = {
        path: math.prod(table[depth][rank] for depth, rank in enumerate(path))
        for depth in range(1, len(table) + 1)
        for path in product(ranks, repeat=depth)
    }
    return max(
        1 + sum(gains[path] for path in chosen)
        for chosen in combinations(gains, num_nodes)
        if all(len(path) == 1 or path[:-1] in chosen for path in chosen)
    )


@settings(max_examples=60)
@given(tables(max_heads=2, max_ranks=3), st.integers(1, 5))
def test_optimal_is_the_best_of_all_trees_of_its_size(table, num_nodes):
    num_nodes = min(num_nodes, possible_nodes(table))
    tree = optimal(table, num_nodes)
    assert tree.num_nodes == num_nodes
    best = best_by_trying_all(table, num_nodes)
    assert expected_tokens(tree, table) == pytest.approx(best)


@settings(max_examples=15)
@given(tables(max_heads=3, max_ranks=2), st.integers(1, 6))
def test_optimal_is_the_best_of_all_trees_three_deep(table, num_nodes):
    num_nodes = min(num_nodes, possible_nodes(table))
    best = best_by_trying_all(table, num_nodes)
    assert expected_tokens(optimal(table, num_nodes), table) == pytest.approx(best)


@given(tables(), st.integers(1, 30))
def test_optimal_nodes_stand_in_falling_order_of_gain(table, num_nodes):
    tree = optimal(table, min(num_nodes, possible_nodes(table)))
    gains = node_gains(tree, table)
    assert list(gains) == sorted(gains, reverse=True)


@given(tables(), st.integers(2, 30), st.data())
def test_cutting_the_optimal_tree_gives_the_optimal_tree(table, num_nodes, data):
    num_nodes = min(num_nodes, possible_nodes(table))
    smaller = data.draw(st.integers(1, num_nodes))
    assert optimal(table, num_nodes).truncate(smaller) == optimal(table, smaller)


@given(tables(), st.integers(1, 12), st.integers(1, 3), st.integers(0, 3))
def test_optimal_keeps_its_limits(table, num_nodes, max_depth, max_rank):
    inside = [row[: max_rank + 1] for row in table[:max_depth]]
    num_nodes = min(num_nodes, possible_nodes(inside))
    tree = optimal(table, num_nodes, max_depth=max_depth, max_rank=max_rank)
    assert tree == optimal(inside, num_nodes)
    assert tree.max_depth <= max_depth
    assert tree.max_rank <= max_rank


def test_optimal_takes_the_better_rank_first_where_noise_turned_them_round():
    tree = optimal([[0.2, 0.5, 0.1], [0.1, 0.0, 0.6]], 4)
    assert tree.paths == ((1,), (1, 2), (0,), (0, 2))


def test_optimal_refuses_more_nodes_than_the_table_can_give():
    assert optimal([[0.5, 0.2]] * 2, 6).num_nodes == 6
    with pytest.raises(TreeError, match="2 heads with 2 ranks give only 6 nodes"):
        optimal([[0.5, 0.2]] * 2, 7)


@pytest.mark.parametrize("limits", [{"max_depth": 0}, {"max_rank": -1}])
def test_optimal_refuses_limits_that_leave_nothing(limits):
    with pytest.raises(TreeError, match="must be at least"):
        optimal([[0.5]], 1, **limits)


@pytest.mark.parametrize("build", [chain, lambda n: optimal([[0.5]], n)])
@pytest.mark.parametrize("num_nodes", [0, -1, MAX_NODES + 1, 1.0, True])
def test_refuses_a_number_of_nodes_that_no_tree_has(build, num_nodes):
    with pytest.raises(TreeError, match=f"1 to {MAX_NODES} nodes"):
        build(num_nodes)


def test_chain_is_each_heads_best_guess():
    tree = chain(3)
    assert tree.paths == ((0,), (0, 0), (0, 0, 0))
    assert tree.is_chain


@pytest.mark.parametrize("widths", [(1,), (4, 2), (1, 7, 6), (2, 1, 3)])
def test_cartesian_holds_the_whole_product(widths):
    expected = {
        path
        for depth in range(1, len(widths) + 1)
        for path in product(*map(range, widths[:depth]))
    }
    tree = cartesian(widths)
    assert set(tree.paths) == expected
    assert tree.num_nodes == len(expected)


def test_cartesian_is_ordered_by_the_accuracies_given():
    table = [[0.1, 0.6], [0.2, 0.1]]
    gains = node_gains(cartesian((2, 2), table), table)
    assert list(gains) == sorted(gains, reverse=True)
    assert cartesian((2, 2), table).paths[:2] == ((1,), (1, 0))


def test_cartesian_without_fitting_accuracies_has_its_best_guesses_first():
    tree = cartesian((3, 3))
    assert tree == cartesian((3, 3), [[0.5, 0.1]])
    assert tree.paths[:3] == ((0,), (1,), (0, 0))
    assert tree.paths[-1] == (2, 2)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((), "at least one width"),
        ((0,), "width 0"),
        ((2, MAX_RANKS + 1), f"widths go from 1 to {MAX_RANKS}"),
        ((32, 32), f"more than {MAX_NODES} nodes"),
        ((64,) * 1000, f"more than {MAX_NODES} nodes"),
    ],
)
def test_cartesian_refuses(widths, message):
    with pytest.raises(TreeError, match=message):
        cartesian(widths)


# Depth, nodes per depth and leaves as the reference's lists have them.
PUBLISHED = {
    "mc_sim_7b_63": ((10, 28, 23, 2), 42),
    "vicuna_7b_stage2": ((10, 23, 23, 7), 42),
    "vicuna_7b_stage1_ablation": ((10, 21, 25, 7), 42),
    "vicuna_7b_stage1": ((10, 32, 20, 1), 44),
    "vicuna_13b_stage2": ((10, 19, 25, 9), 42),
    "vicuna_13b_stage1": ((10, 29, 23, 1), 44),
    "vicuna_33b_stage2": ((10, 24, 24, 5), 43),
    "vicuna_33b_stage1": ((10, 34, 19), 46),
    "zephyr_stage2": ((10, 27, 23, 3), 44),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_trees(name):
    tree = published(name)
    assert (tree.nodes_per_depth, len(tree.leaves)) == PUBLISHED[name]
    assert (tree.num_nodes, tree.max_rank) == (63, 9)
    assert tree.paths[0] == (0,)


def test_published_names_are_the_nine():
    assert set(published_names()) == set(PUBLISHED)


def test_unknown_published_name_lists_the_known_ones():
    with pytest.raises(TreeError, match=r"'vicuna'.*mc_sim_7b_63.*zephyr_stage2"):
        published("vicuna")
