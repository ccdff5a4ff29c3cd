# SPDX-License-Identifier: Apache-2.0
"""The walk of flat trees against a plain loop and against `verify_exact`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kernels.trees import Trees, depths_of, random_trees
from vllm_medusa.kernels.walk import Walk, walk_trees, walk_trees_reference
from vllm_medusa.verify import PLACEHOLDER, verify_exact

IMPLEMENTATIONS = pytest.mark.parametrize(
    "walk",
    [
        pytest.param(walk_trees_reference, id="reference"),
        pytest.param(walk_trees, id="kernel", marks=pytest.mark.interpreter),
    ],
)


def walk_by_loop(trees: Trees) -> tuple[list, list, list]:
    """Tokens, rows and num_sampled, one step after the other."""
    tokens, rows, num_sampled = [], [], []
    length = trees.max_depth + 1
    for guessed, drawn, parents in zip(
        trees.tokens_of, trees.drawn_of, trees.parents_of, strict=True
    ):
        path = [0]
        while True:
            children = [
                row
                for row in range(1, len(parents))
                if parents[row] == path[-1] and guessed[row] == drawn[path[-1]] >= 0
            ]
            if not children:
                break
            path.append(children[0])
        pad = length - len(path)
        tokens.append([drawn[row] for row in path] + [PLACEHOLDER] * pad)
        rows.append(path + path[-1:] * pad)
        num_sampled.append(len(path))
    return tokens, rows, num_sampled


def check(walk: Walk, trees: Trees) -> None:
    assert walk.tokens.dtype == torch.int64
    assert walk.rows.dtype == walk.num_sampled.dtype == torch.int32
    found = (walk.tokens.tolist(), walk.rows.tolist(), walk.num_sampled.tolist())
    assert found == walk_by_loop(trees)


@IMPLEMENTATIONS
@given(
    seed=st.integers(0, 2**32),
    shared=st.booleans(),
    distinct=st.booleans(),
    invalid=st.booleans(),
    dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_equals_a_plain_loop(walk, seed, shared, distinct, invalid, dtype):
    trees = random_trees(
        seed, shared=shared, distinct=distinct, invalid=invalid, dtype=dtype
    )
    assert not shared or trees.parents.stride(0) == 0 or len(trees.tokens_of) == 1
    check(walk(*trees.arguments), trees)


@IMPLEMENTATIONS
@given(seed=st.integers(0, 2**32), shared=st.booleans())
def test_equals_verify_exact(walk, seed, shared):
    trees = random_trees(seed, shared=shared, distinct=True)
    width = trees.parents.shape[1]

    def padded(lists: list[list[int]]) -> torch.Tensor:
        return torch.tensor([one + [0] * (width - len(one)) for one in lists])

    expected = verify_exact(
        padded(trees.tokens_of),
        padded(trees.drawn_of),
        trees.parents.long(),
        padded([depths_of(parents) for parents in trees.parents_of]),
        torch.tensor([len(parents) for parents in trees.parents_of]),
        trees.max_depth,
    )
    found = walk(*trees.arguments)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.rows.long(), expected.rows)
    assert torch.equal(found.num_sampled.long(), expected.num_accepted + 1)


@IMPLEMENTATIONS
def test_a_negative_token_is_never_accepted(walk):
    # A chain of two nodes, whose draws agree with all of it.
    tokens, drawn = torch.tensor([9, -1, 5]), torch.tensor([-1, 5, 6])
    parents = torch.tensor([[0, 0, 1]], dtype=torch.int32)
    starts = torch.tensor([0, 3], dtype=torch.int32)
    found = walk(tokens, drawn, parents, starts, 2)
    assert found.num_sampled.tolist() == [1]
    assert found.rows.tolist() == [[0, 0, 0]]


@IMPLEMENTATIONS
def test_of_equal_siblings_the_first_is_walked(walk):
    # Only the second sibling's child would be accepted.
    tokens, drawn = torch.tensor([9, 4, 4, 5]), torch.tensor([4, 7, 5, 6])
    parents = torch.tensor([[0, 0, 0, 2]], dtype=torch.int32)
    starts = torch.tensor([0, 4], dtype=torch.int32)
    found = walk(tokens, drawn, parents, starts, 2)
    assert found.tokens.tolist() == [[4, 7, PLACEHOLDER]]
    assert found.rows.tolist() == [[0, 1, 1]]


@IMPLEMENTATIONS
@pytest.mark.parametrize("width", [2, 65, 129, 257])
def test_a_chain_of_any_length(walk, width):
    tokens = torch.arange(100, 100 + width, dtype=torch.int32)
    drawn = tokens.long() + 1
    parents = (torch.arange(width, dtype=torch.int32) - 1).clamp(min=0)[None]
    starts = torch.tensor([0, width], dtype=torch.int32)
    found = walk(tokens, drawn, parents, starts, width - 1)
    assert found.tokens.tolist() == [drawn.tolist()]
    assert found.num_sampled.tolist() == [width]


@IMPLEMENTATIONS
def test_parents_may_be_columns_of_another_tensor(walk):
    trees = random_trees(3, shared=False, distinct=True)
    wide = torch.full((*trees.parents.shape, 2), 99, dtype=torch.int32)
    wide[..., 0] = trees.parents
    row_tokens, drawn, _, starts, max_depth = trees.arguments
    found = walk(row_tokens, drawn, wide[..., 0], starts, max_depth)
    check(found, trees)


@IMPLEMENTATIONS
def test_no_requests(walk):
    empty = torch.zeros(0, dtype=torch.int64)
    parents = torch.zeros(0, 5, dtype=torch.int32)
    found = walk(empty, empty, parents, torch.zeros(1, dtype=torch.int32), 3)
    assert found.tokens.shape == found.rows.shape == (0, 4)
    assert found.num_sampled.shape == (0,)
