# SPDX-License-Identifier: Apache-2.0
"""TokenTree: what follows from its parents, and what it refuses."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_medusa.errors import TreeError
from vllm_medusa.tree import MAX_NODES, MAX_RANKS, TokenTree


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    parents, ranks = [-1], [-1]
    for row in range(1, draw(st.integers(0, 24)) + 1):
        parent = draw(st.integers(0, row - 1))
        taken = {r for p, r in zip(parents, ranks, strict=True) if p == parent}
        parents.append(parent)
        ranks.append(draw(st.sampled_from([r for r in range(40) if r not in taken])))
    return TokenTree(tuple(parents), tuple(ranks))


@given(trees())
def test_paths_are_closed_under_the_parent(tree):
    paths = set(tree.paths)
    assert len(paths) == tree.num_nodes
    assert all(len(path) == 1 or path[:-1] in paths for path in paths)


@given(trees())
def test_parent_row_is_the_row_of_the_parent_path(tree):
    rows = {(): 0} | {path: row for row, path in enumerate(tree.paths, start=1)}
    for path, row in rows.items():
        if row:
            assert tree.parents[row] == rows[path[:-1]] < row
            assert tree.ranks[row] == path[-1]
            assert tree.depths[row] == len(path)


@given(trees())
def test_mask_shows_each_row_itself_and_the_prefixes_of_its_path(tree):
    paths = [(), *tree.paths]
    expected = [[row[: len(a)] == a for a in paths] for row in paths]
    mask = tree.ancestor_mask()
    assert mask.dtype == torch.bool
    assert mask.tolist() == expected


@given(trees(), st.data())
def test_first_nodes_are_a_tree(tree, data):
    count = data.draw(st.integers(0, tree.num_nodes))
    cut = tree.truncate(count)
    assert cut.paths == tree.paths[:count]
    rows = count + 1
    assert torch.equal(cut.ancestor_mask(), tree.ancestor_mask()[:rows, :rows])


@given(trees())
def test_from_paths_gives_the_tree_back(tree):
    assert TokenTree.from_paths(tree.paths) == tree


@given(trees(), st.randoms(use_true_random=False))
def test_from_paths_repairs_any_order(tree, rng: random.Random):
    shuffled = list(tree.paths)
    rng.shuffle(shuffled)
    repaired = TokenTree.from_paths(shuffled)
    assert sorted(repaired.paths) == sorted(tree.paths)
    # Nodes that wait for no parent keep their order among each other.
    first = [path for path in shuffled if len(path) == 1]
    assert [path for path in repaired.paths if len(path) == 1] == first


@given(trees())
def test_children_and_leaves_agree_with_parents(tree):
    for row, children in enumerate(tree.children):
        assert all(tree.parents[child] == row for child in children)
        assert list(children) == sorted(children)
    assert sum(map(len, tree.children)) == tree.num_nodes
    assert set(tree.leaves) == set(range(1, tree.num_nodes + 1)) - set(tree.parents)


@given(trees(), st.integers(0, 6))
def test_limit_depth_keeps_exactly_the_shallow_nodes(tree, depth):
    expected = tuple(path for path in tree.paths if len(path) <= depth)
    assert tree.limit_depth(depth).paths == expected


def test_example():
    tree = TokenTree.from_paths([[0], [2], [0, 1], [0, 1, 0]])
    assert tree.parents == (-1, 0, 0, 1, 3)
    assert tree.ranks == (-1, 0, 2, 1, 0)
    assert tree.depths == (0, 1, 1, 2, 3)
    assert tree.children == ((1, 2), (3,), (), (4,), ())
    assert tree.leaves == (2, 4)
    assert tree.nodes_per_depth == (2, 1, 1)
    assert (tree.num_nodes, tree.max_depth, tree.max_rank) == (4, 3, 2)
    assert not tree.is_chain


def test_child_given_first_waits_for_its_parent():
    tree = TokenTree.from_paths([[1], [0, 0], [2], [0]])
    assert tree.paths == ((1,), (2,), (0,), (0, 0))


def test_root_alone_is_a_chain_without_leaves():
    tree = TokenTree((-1,), (-1,))
    assert tree.is_chain
    assert tree.paths == tree.leaves == tree.nodes_per_depth == ()
    assert (tree.num_nodes, tree.max_depth, tree.max_rank) == (0, 0, -1)
    assert tree.ancestor_mask().tolist() == [[True]]


@pytest.mark.parametrize(
    ("parents", "is_chain"),
    [((-1, 0, 1, 2), True), ((-1, 0, 0), False), ((-1, 0, 1, 1), False)],
)
def test_is_chain(parents, is_chain):
    ranks = (-1, *range(len(parents) - 1))
    assert TokenTree(parents, ranks).is_chain is is_chain


def test_equal_trees_hash_alike_whatever_sequence_they_came_from():
    first, second = TokenTree((-1, 0), (-1, 0)), TokenTree([-1, 0], [-1, 0])
    assert first == second
    assert {first: "tree"}[second] == "tree"


@pytest.mark.parametrize(
    ("parents", "ranks", "message"),
    [
        ((), (), "row 0 is the root"),
        ((0, 0), (-1, 0), "row 0 is the root"),
        ((-1, 0), (0, 0), "row 0 is the root"),
        ((-1, 0), (-1,), "2 parents and 1 ranks"),
        ((-1, 1), (-1, 0), "row 1 has parent 1"),
        ((-1, 0, 2), (-1, 0, 0), "row 2 has parent 2"),
        ((-1, -1), (-1, 0), "row 1 has parent -1"),
        ((-1, 0), (-1, -1), "row 1 has rank -1"),
        ((-1, 0), (-1, MAX_RANKS), f"row 1 has rank {MAX_RANKS}"),
        ((-1, 0, 0), (-1, 3, 3), "row 2 repeats rank 3 under parent 0"),
        ((-1, 0.0), (-1, 0), "must be integers, not 0.0"),
        ((-1, False), (-1, 0), "must be integers, not False"),
        ("ab", (-1, 0), "must be a tuple of integers"),
        ((-1, *[0] * (MAX_NODES + 1)), (-1, *[0] * (MAX_NODES + 1)), "too large"),
    ],
)
def test_refuses_parents_and_ranks(parents, ranks, message):
    with pytest.raises(TreeError, match=message):
        TokenTree(parents, ranks)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([[0], [0, 1, 0]], r"path \[0, 1, 0\] has a gap: its parent \[0, 1\]"),
        ([[1, 0]], r"path \[1, 0\] has a gap"),
        ([[0], [1], [0]], r"path \[0\] stands twice"),
        ([[0], []], "an empty path"),
        ([[0], [-1]], r"path \[-1\] holds -1"),
        ([[0], [0, MAX_RANKS]], f"holds {MAX_RANKS}: a rank is an integer"),
        ([[0.0]], "holds 0.0"),
        ([[True]], "holds True"),
        ([[None]], "holds None"),
        ([0, 1], "a path is a list of ranks, not 0"),
        (["0"], "a path is a list of ranks, not '0'"),
        ("[[0]]", "a tree is a list of paths"),
        (5, "a tree is a list of paths"),
        ([[0]] * (MAX_NODES + 1), f"{MAX_NODES + 1} nodes is too large"),
    ],
)
def test_refuses_paths(paths, message):
    with pytest.raises(TreeError, match=message):
        TokenTree.from_paths(paths)


@pytest.mark.parametrize("paths", [[[-1] * 10**6], [[0] * 10**6], [[0] * 10**6] * 2])
def test_error_quotes_only_the_start_of_a_long_path(paths):
    with pytest.raises(TreeError) as caught:
        TokenTree.from_paths(paths)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("count", [-1, 3])
def test_refuses_to_cut_to_more_or_fewer_nodes_than_there_are(count):
    tree = TokenTree.from_paths([[0], [1]])
    with pytest.raises(TreeError, match="give 0 to 2"):
        tree.truncate(count)


def test_refuses_more_depth_than_heads():
    tree = TokenTree.from_paths([[0], [0, 0], [0, 0, 0]])
    tree.check_heads(3)
    with pytest.raises(TreeError, match="3 deep but there are only 2 heads"):
        tree.check_heads(2)


def test_importing_the_tree_and_the_configuration_loads_no_torch():
    code = (
        "import sys, vllm_medusa.tree.resolve, vllm_medusa.cli.tree\n"
        "print(sorted({'torch', 'vllm'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
