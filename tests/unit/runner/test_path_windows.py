# SPDX-License-Identifier: Apache-2.0
"""Tree rows as chains: before each row that is picked stands its own path."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.unit.kernels.trees import depths_of, random_parents
from vllm_medusa.runner.v2.path_windows import PathWindows, path_rows
from vllm_medusa.tree import TokenTree, chain

CPU = torch.device("cpu")


def path_to(row: int, parents: list[int]) -> list[int]:
    path = [row]
    while path[0] != 0:
        path.insert(0, parents[path[0]])
    return path


def random_tree(rng: random.Random, width: int) -> TokenTree:
    parents = random_parents(rng, width)
    ranks = [parents[:row].count(parent) for row, parent in enumerate(parents)]
    return TokenTree((-1, *parents[1:]), (-1, *ranks[1:]))


def table(trees: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.tensor(trees, dtype=torch.int32),
        torch.tensor([depths_of(tree) for tree in trees], dtype=torch.int32),
    )


@pytest.mark.parametrize("seed", range(12))
def test_paths_end_in_repeats(seed: int) -> None:
    rng = random.Random(seed)
    width = rng.randint(1, 12)
    trees = [random_parents(rng, width) for _ in range(3)]
    parents, depths = table(trees)
    max_depth = int(depths.max()) + rng.randint(0, 1)
    paths = path_rows(parents, depths, max_depth)
    for tree, of_tree in zip(trees, paths.tolist(), strict=True):
        for row, path in enumerate(of_tree):
            expected = path_to(row, tree)
            assert path == expected + [row] * (max_depth + 1 - len(expected))


@pytest.mark.parametrize("is_fixed", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_picked_behind_its_path(seed: int, is_fixed: bool) -> None:
    """In a mixed batch: windowed or not, cut or not, and requests without a tree."""
    rng = random.Random(seed)
    num_reqs, width = rng.randint(1, 5), rng.randint(2, 14)
    trees = [random_tree(rng, width) for _ in range(1 if is_fixed else num_reqs)]
    deepest = max(trees, key=lambda tree: tree.max_depth)
    num_rows = np.array([rng.randint(1, width) for _ in range(num_reqs)])
    is_windowed = np.array([rng.random() < 0.6 for _ in range(num_reqs)]) & (
        num_rows > 1
    )
    # The requests are some of a larger step's.
    first_rows = 3 + (num_rows + 2).cumsum() - num_rows
    of_tree = np.zeros(num_reqs, int) if is_fixed else np.arange(num_reqs)
    parents, depths = table([[0, *tree.parents[1:]] for tree in trees])
    windows = PathWindows(deepest, CPU, is_fixed=is_fixed)
    layout = windows.lay_out(
        first_rows,
        num_rows,
        is_windowed,
        of_tree,
        path_rows(parents, depths, deepest.max_depth),
        depths,
    )
    assert layout.local_pos.dtype == torch.int32
    counts = windows.num_laid_out(num_rows, is_windowed)
    assert len(layout.source) == len(layout.local_pos) == counts.sum()
    assert len(layout.pick) == num_rows.sum()

    picks = iter(layout.pick.tolist())
    end = 0
    for request in range(num_reqs):
        first, start = int(first_rows[request]), end
        end += int(counts[request])
        tree = parents[of_tree[request]].tolist()
        for row in range(num_rows[request]):
            path = list(range(row + 1))
            if is_windowed[request]:
                path = path_to(row, tree)
            laid_out = next(picks)
            assert start <= laid_out < end
            assert layout.local_pos[laid_out] == len(path) - 1
            window = layout.source[laid_out - len(path) + 1 : laid_out + 1]
            assert window.tolist() == [first + passed for passed in path]


def test_a_fixed_tree_has_a_window_per_leaf() -> None:
    tree = TokenTree.from_paths([[0], [1], [0, 0], [0, 1], [0, 0, 0]])
    windows = PathWindows(tree, CPU)
    whole, cut, root = np.array([6]), np.array([4]), np.array([1])
    windowed = np.array([True])
    # Leaves (1,), (0, 1), (0, 0, 0); cut: (1,), (0, 0).
    assert windows.num_laid_out(whole, windowed).tolist() == [2 + 3 + 4]
    assert windows.num_laid_out(cut, windowed).tolist() == [2 + 3]
    assert windows.num_laid_out(root, ~windowed).tolist() == [1]


def test_a_chain_is_its_own_window() -> None:
    tree = chain(4)
    parents, depths = table([[0, *tree.parents[1:]]])
    layout = PathWindows(tree, CPU).lay_out(
        np.array([0]),
        np.array([5]),
        np.array([True]),
        np.array([0]),
        path_rows(parents, depths, 4),
        depths,
    )
    for rows in (layout.source, layout.local_pos, layout.pick):
        assert rows.tolist() == list(range(5))
