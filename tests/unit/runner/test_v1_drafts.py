# SPDX-License-Identifier: Apache-2.0
"""What Model Runner V1 keeps of proposals, and the layouts made of it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.unit.runner.v1_steps import RandomStep
from vllm_medusa.propose import Proposal
from vllm_medusa.runner.v1.drafts import NO_DETAILS, Drafts, KeptDrafts
from vllm_medusa.runner.v1.layouts import Layouts
from vllm_medusa.tree import TokenTree

TREE = TokenTree.from_paths([[0], [1], [0, 0], [2], [0, 1], [0, 0, 0]])
OTHERS = [
    TokenTree.from_paths([[0], [0, 0], [0, 0, 0], [0, 0, 0, 0], [1], [2]]),
    TokenTree.from_paths([[0], [1], [2], [3], [4], [5]]),
    TREE,
]


def padded(tree: TokenTree) -> torch.Tensor:
    return torch.tensor((0, *tree.parents[1:]), dtype=torch.int32)


def test_drafts_are_taken_once() -> None:
    kept = KeptDrafts()
    parents = torch.stack([padded(tree) for tree in OTHERS])
    probs = torch.rand(3, 2, 4)
    kept.keep(["a", "b", "c"], Proposal(torch.zeros(3, 6), parents, probs))
    kept.forget({"b", "unknown"})
    none, of_c, of_b = kept.take(["new", "c", "b"])
    assert none is of_b is NO_DETAILS
    assert of_c.parents.tolist() == parents[2].tolist()
    assert torch.equal(of_c.probs, probs[2])
    assert kept.take(["c"]) == [NO_DETAILS]
    # "a" was not in that step: its drafts wait.
    assert kept.take(["a"])[0].parents.tolist() == parents[0].tolist()


def test_the_proposer_s_own_tree_needs_no_memory() -> None:
    kept = KeptDrafts()
    kept.keep(["a"], Proposal(torch.zeros(1, 6)))
    assert kept.take(["a"]) == [NO_DETAILS]


@pytest.mark.parametrize("seed", range(8))
def test_layouts_by_request(seed: int) -> None:
    """Each tree, cut to its own rows, is laid out as if it were the only one."""
    rng = random.Random(seed)
    trees = [rng.choice(OTHERS) for _ in range(5)]
    num_rows = np.array([rng.randint(2, 7) for _ in trees])
    layout = Layouts(TREE, has_fixed_tree=False).of(
        num_rows, [Drafts(padded(tree).long()) for tree in trees]
    )
    alone = [
        Layouts(tree, has_fixed_tree=True).of(np.array([count]), [NO_DETAILS])
        for tree, count in zip(trees, num_rows, strict=True)
    ]
    assert layout.max_depth == max(one.max_depth for one in alone)
    for index, (one, rows) in enumerate(zip(alone, num_rows, strict=True)):
        assert torch.equal(layout.parents[index, :rows], one.parents[0])
        assert torch.equal(layout.depths[index, :rows], one.depths[0])
        ancestors = layout.ancestors[index, :rows]
        assert torch.equal(ancestors[:, :rows], one.ancestors[0])
        assert not ancestors[:, rows:].any()


def test_a_fixed_tree_is_laid_out_once_for_each_width() -> None:
    layouts = Layouts(TREE, has_fixed_tree=True)
    wide = layouts.of(np.array([3, 7]), [NO_DETAILS] * 2)
    assert wide.parents.shape == (1, 7)
    assert layouts.of(np.array([7]), [NO_DETAILS]) is wide
    narrow = layouts.of(np.array([3, 2]), [NO_DETAILS] * 2)
    assert narrow.parents.tolist() == [[0, 0, 0]]
    assert not narrow.is_chain


def test_positions_and_padding_of_trees_by_request() -> None:
    """Padding repeats the last row in use, with its own depth and ancestors."""
    step = RandomStep(random.Random(2))
    trees = step.trees()
    counts = [count for count in step.num_drafts if count]
    for index, (request, count) in enumerate(
        zip(trees.request_indices, counts, strict=True)
    ):
        parents = step.parents[request]
        depths = [0]
        for parent in parents[1:]:
            depths.append(depths[parent] + 1)
        depths += depths[-1:] * (trees.width - len(depths))
        assert trees.row_depths()[index].tolist() == depths
        base = int(trees.bases[index])
        assert trees.positions()[index].tolist() == [base + d for d in depths]
        last = trees.row_ancestors()[index, count]
        assert (trees.row_ancestors()[index, count:] == last).all()
        assert last.sum() == depths[count] + 1
