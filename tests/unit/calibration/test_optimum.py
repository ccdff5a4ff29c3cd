# SPDX-License-Identifier: Apache-2.0
"""The trees chosen from synthetic costs are the true optimum.

For every number of requests any tree of any shape could be chosen. What
`vllm-medusa calibrate` chooses, one order of nodes and how many of them to use, is
compared with all of them.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_medusa.calibration.table import choose_table
from vllm_medusa.calibration.tokens import expected_by_nodes, worthy_tree

MOST_NODES, REQUESTS = 6, 3

Paths = frozenset[tuple[int, ...]]


@cache
def all_trees(heads: int, ranks: int) -> dict[int, set[Paths]]:
    """Every tree of 0 to `MOST_NODES` nodes, by its number of nodes."""
    trees: dict[int, set[Paths]] = {0: {frozenset()}}
    for size in range(1, MOST_NODES + 1):
        trees[size] = {
            tree | {(*parent, rank)}
            for tree in trees[size - 1]
            for parent in (*tree, ())
            for rank in range(ranks)
            if len(parent) < heads and (*parent, rank) not in tree
        }
    return trees


def tokens_of(tree: Paths, table: list[list[float]]) -> float:
    return 1 + math.fsum(
        math.prod(table[depth][rank] for depth, rank in enumerate(path))
        for path in tree
    )


def rows(ranks: int) -> st.SearchStrategy[list[float]]:
    # Few values, so that ties are common, in any order: rank 1 may beat rank 0.
    values = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.3])
    return st.lists(values, min_size=ranks, max_size=ranks)


tables = st.sampled_from([(2, 2), (2, 3), (3, 2)]).flatmap(
    lambda shape: st.lists(rows(shape[1]), min_size=shape[0], max_size=shape[0])
).filter(lambda table: max(table[0]) > 0)  # fmt: skip
costs_of = st.lists(
    st.lists(st.floats(1.0, 2.5), min_size=MOST_NODES, max_size=MOST_NODES),
    min_size=REQUESTS,
    max_size=REQUESTS,
)


@settings(max_examples=40, deadline=None)
@given(tables)
def test_one_order_holds_the_best_tree_of_every_size(table: list[list[float]]) -> None:
    tree = worthy_tree(table, MOST_NODES)
    counts = range(1, tree.num_nodes + 1)
    prefixes = expected_by_nodes(tree, table, list(counts))
    for size, trees in all_trees(len(table), len(table[0])).items():
        best = max((tokens_of(other, table) for other in trees), default=0.0)
        # Beyond the nodes worth anything, more nodes bring nothing.
        reached = prefixes[min(size, tree.num_nodes)]
        assert reached == pytest.approx(best)


@settings(max_examples=40, deadline=None)
@given(tables, costs_of, st.sampled_from([0.0, 0.03, 0.2]))
def test_no_trees_and_no_table_beat_the_chosen(
    table: list[list[float]], seconds: list[list[float]], margin: float
) -> None:
    costs = {
        requests: {0: 1.0} | dict(enumerate(row, start=1))
        for requests, row in enumerate(seconds, start=1)
    }
    tree = worthy_tree(table, MOST_NODES)
    tokens = expected_by_nodes(tree, table, list(range(1, tree.num_nodes + 1)))
    chosen = [
        nodes
        for first, last, nodes in choose_table(costs, tokens, margin)
        for _ in range(first, last + 1)
    ]
    assert len(chosen) == REQUESTS

    # The best tree of each size, of whatever shape: fewer need not be looked at.
    best = {
        size: max(tokens_of(other, table) for other in trees)
        for size, trees in all_trees(len(table), len(table[0])).items()
        if trees
    }

    def total(sizes: tuple[int, ...]) -> float:
        """Sum of log speed-ups; -inf where a tree stays below the margin."""
        gains = [
            best[size] / costs[requests][size] if size else 1.0
            for requests, size in enumerate(sizes, start=1)
        ]
        if any(g < 1 + margin for g, size in zip(gains, sizes, strict=True) if size):
            return -math.inf
        return sum(map(math.log, gains))

    highest = max(
        total(sizes)
        for sizes in itertools.product(best, repeat=REQUESTS)
        if all(a >= b for a, b in itertools.pairwise(sizes))
        # More nodes than are worth anything are never measured.
        and max(sizes) <= tree.num_nodes
    )
    assert total(tuple(chosen)) == pytest.approx(highest)
