# SPDX-License-Identifier: Apache-2.0
"""Trees on the device: one for all requests, or one for each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from vllm_medusa.runner.v2.tree_state import TreeState
from vllm_medusa.tree import TokenTree, chain
from vllm_medusa.tree.masks import ancestor_masks

CPU = torch.device("cpu")
TREE = TokenTree.from_paths([[0], [1], [0, 0], [0, 1], [0, 0, 0]])


def parents_of(trees: list[TokenTree], width: int) -> torch.Tensor:
    """int32 [num_trees, width], padded with children of the root."""
    rows = [[0, *tree.parents[1:]] for tree in trees]
    return torch.tensor(
        [row + [0] * (width - len(row)) for row in rows], dtype=torch.int32
    )


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    """A random tree: each new node goes below any row, as its next rank."""
    parents, ranks, children = [-1], [-1], {0: 0}
    for row in range(1, draw(st.integers(1, 20)) + 1):
        parent = draw(st.integers(0, row - 1))
        parents.append(parent)
        ranks.append(children[parent])
        children[parent] += 1
        children[row] = 0
    return TokenTree(tuple(parents), tuple(ranks))


@given(st.lists(trees(), min_size=1, max_size=4))
def test_ancestor_masks(batch: list[TokenTree]) -> None:
    width = max(tree.num_nodes for tree in batch) + 1
    masks = ancestor_masks(parents_of(batch, width))
    for tree, mask in zip(batch, masks, strict=True):
        rows = tree.num_nodes + 1
        assert torch.equal(mask[:rows, :rows], tree.ancestor_mask())
        assert not mask[:rows, rows:].any()


def test_a_fixed_tree_is_one_row_for_all() -> None:
    state = TreeState(TREE, max_num_reqs=8, device=CPU)
    for batch in (state.parents(5), state.depths(5), state.ancestors(5)):
        assert batch.shape[0] == 5
        assert batch.stride(0) == 0
    assert state.parents(1).tolist() == [[0, *TREE.parents[1:]]]
    assert state.depths(1).tolist() == [list(TREE.depths)]
    assert torch.equal(state.ancestors(1)[0], TREE.ancestor_mask())
    requests, rows = torch.tensor([7, 7, 2]), torch.tensor([0, 5, 3])
    assert state.depth_of(requests, rows).tolist() == [0, 3, 2]


def test_trees_by_request_follow_the_requests() -> None:
    """Stored by request state, laid out in the order of the next batch."""
    state = TreeState(TREE, max_num_reqs=4, device=CPU, is_fixed=False)
    other = TokenTree.from_paths([[0], [0, 0], [0, 0, 0], [1], [2]])
    state.store(torch.tensor([3, 1]), parents_of([other, TREE], state.max_width))
    addresses = [
        t(4).data_ptr() for t in (state.parents, state.depths, state.ancestors)
    ]
    state.lay_out(torch.tensor([1, 3]))
    for index, tree in enumerate((TREE, other)):
        assert state.parents(2)[index].tolist() == [0, *tree.parents[1:]]
        assert state.depths(2)[index].tolist() == list(tree.depths)
        assert torch.equal(state.ancestors(2)[index], tree.ancestor_mask())
    assert state.depth_of(torch.tensor([3, 1]), torch.tensor([3, 3])).tolist() == [3, 2]
    # A captured graph reads the same memory in every step.
    assert addresses == [
        t(4).data_ptr() for t in (state.parents, state.depths, state.ancestors)
    ]


@pytest.mark.parametrize("is_fixed", [True, False])
def test_chain_only_where_it_is_everyones_tree(is_fixed: bool) -> None:
    state = TreeState(chain(3), max_num_reqs=2, device=CPU, is_fixed=is_fixed)
    assert state.is_chain is is_fixed


def test_nothing_waits_for_the_device() -> None:
    """Fake tensors have no values: whatever reads one on the host raises."""
    with FakeTensorMode():
        state = TreeState(TREE, max_num_reqs=4, device=CPU, is_fixed=False)
        index = torch.arange(3)
        parents = torch.zeros(3, state.max_width, dtype=torch.int32)
        state.store(index, parents)
        state.lay_out(index)
        state.depth_of(index, index)
