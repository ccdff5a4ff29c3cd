# SPDX-License-Identifier: Apache-2.0
"""Accuracies of heads and what a tree is worth under them."""

from __future__ import annotations

import json
import math
from itertools import product

import pytest

from vllm_medusa.errors import TreeError
from vllm_medusa.tree import (
    MAX_RANKS,
    TokenTree,
    check_accuracies,
    covers,
    expected_tokens,
    load_accuracies,
    node_gains,
    published,
)

TABLE = [[0.5, 0.2, 0.1], [0.4, 0.3, 0.0], [0.25, 0.25, 0.25]]


def tokens_by_walking(tree, table):
    """Mean over every outcome: which rank of each head is right, if any is."""
    mean = 0.0
    outcomes = [[*enumerate(row), (None, 1 - sum(row))] for row in table]
    for outcome in product(*outcomes):
        probability = math.prod(p for _, p in outcome)
        accepted, path = 0, ()
        for right, _ in outcome:
            path = (*path, right)
            if path not in tree.paths:
                break
            accepted += 1
        mean += probability * (accepted + 1)
    return mean


@pytest.mark.parametrize(
    "paths",
    [
        [[0]],
        [[0], [0, 0], [0, 0, 0]],
        [[0], [1], [2], [1, 1], [0, 2], [1, 1, 2]],
        [[2], [2, 0], [2, 0, 1]],
    ],
)
def test_expected_tokens_is_the_mean_of_the_walk(paths):
    tree = TokenTree.from_paths(paths)
    mean = tokens_by_walking(tree, TABLE)
    assert expected_tokens(tree, TABLE) == pytest.approx(mean)


def test_gain_of_a_node_is_the_product_along_its_path():
    tree = TokenTree.from_paths([[0], [1], [0, 1], [0, 1, 2]])
    assert node_gains(tree, TABLE) == pytest.approx((1, 0.5, 0.2, 0.15, 0.0375))


def test_refuses_a_tree_beyond_the_table():
    tree = published("mc_sim_7b_63")
    assert not covers(TABLE, tree)
    with pytest.raises(TreeError, match=r"4 deep with ranks up to 9.*3 heads"):
        node_gains(tree, TABLE)
    wide = TokenTree.from_paths([[3]])
    assert not covers(TABLE, wide)
    assert covers(TABLE, TokenTree.from_paths([[2]]))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "non-empty list"),
        ({"1": [0.5]}, "non-empty list"),
        ([[0.5]] * 65, "65 heads"),
        ([[0.5], 0.5], "head 2 must be a list"),
        ([[]], "head 1 must be a list"),
        ([[0.0] * (MAX_RANKS + 1)], f"1 to {MAX_RANKS} probabilities"),
        ([[0.5, 0.1], [0.5]], "head 2 have 1 ranks but those of head 1 have 2"),
        ([[0.5, -0.1]], "head 1, rank 1 is -0.1"),
        ([[1.5]], "rank 0 is 1.5"),
        ([[math.nan]], "is nan:"),
        ([[math.inf]], "is inf:"),
        ([[True]], "is True:"),
        ([["0.5"]], "'0.5'"),
        ([[0.5, 0.6]], "sum to 1.100, more than 1: give the probability of each rank"),
    ],
)
def test_refuses_tables(table, message):
    with pytest.raises(TreeError, match=message):
        check_accuracies(table)


def test_loads_a_table(tmp_path):
    path = tmp_path / "accuracies.json"
    path.write_text(json.dumps({"accuracy": TABLE, "num_positions": 9, "source": "x"}))
    assert load_accuracies(path) == tuple(map(tuple, TABLE))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0.5]]", 'lacks the key "accuracy"'),
        ('{"top": []}', 'lacks the key "accuracy"'),
        ('{"accuracy": [[2]]}', "accuracies.json: accuracy of head 1"),
        ('{"accuracy": [[0.5', "not valid JSON"),
    ],
)
def test_refuses_files(tmp_path, content, message):
    path = tmp_path / "accuracies.json"
    path.write_text(content)
    with pytest.raises(TreeError, match=message):
        load_accuracies(path)
