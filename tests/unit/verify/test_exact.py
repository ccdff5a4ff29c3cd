# SPDX-License-Identifier: Apache-2.0
"""The batched walk against the rule as section 5 of the design states it."""

from __future__ import annotations

import random

import pytest
import torch

from tests.unit.verify.trees import random_tree, sibling_tokens, walk
from vllm_medusa.verify import PLACEHOLDER, verify_exact


@pytest.mark.parametrize("seed", range(40))
def test_against_brute_force(seed: int) -> None:
    """A batch of cut trees; a small vocabulary makes long accepted paths common."""
    rng = random.Random(seed)
    num_nodes = rng.randint(1, 14)
    vocab_size = num_nodes + rng.randint(0, 3)
    tree = random_tree(rng, num_nodes)
    batch = 24
    # Half of the draws agree with a child, so that paths of any depth are walked.
    tokens, drawn, num_rows = [], [], []
    for _ in range(batch):
        row_tokens = sibling_tokens(rng, tree, vocab_size)
        draws = [rng.randrange(vocab_size) for _ in row_tokens]
        for child, parent in list(enumerate(tree.parents))[1:]:
            if rng.random() < 0.6:
                draws[parent] = row_tokens[child]
        tokens.append(row_tokens)
        drawn.append(draws)
        num_rows.append(rng.randint(1, num_nodes + 1))
    parents = torch.tensor((0, *tree.parents[1:])).expand(batch, -1)
    depths = torch.tensor(tree.depths).expand(batch, -1)
    result = verify_exact(
        torch.tensor(tokens),
        torch.tensor(drawn),
        parents,
        depths,
        torch.tensor(num_rows),
        tree.max_depth,
    )
    width = tree.max_depth + 1
    assert result.tokens.shape == result.rows.shape == (batch, width)
    for i in range(batch):
        rows, emitted = walk(tree, tokens[i], drawn[i], num_rows[i])
        padding = width - len(rows)
        assert result.num_accepted[i] == len(rows) - 1
        assert result.tokens[i].tolist() == emitted + [PLACEHOLDER] * padding
        assert result.rows[i].tolist() == rows + rows[-1:] * padding
        assert result.rows[i, -1] == rows[-1]


def test_different_trees_in_one_batch() -> None:
    """parents and depths are per request: nothing assumes one tree for all."""
    rng = random.Random(1)
    trees = [random_tree(rng, 6) for _ in range(16)]
    tokens = [sibling_tokens(rng, tree, 9) for tree in trees]
    drawn = []
    for tree, row_tokens in zip(trees, tokens, strict=True):
        draws = [8] * 7
        for child, parent in list(enumerate(tree.parents))[1:]:
            draws[parent] = row_tokens[child]
        drawn.append(draws)
    result = verify_exact(
        torch.tensor(tokens),
        torch.tensor(drawn),
        torch.tensor([(0, *tree.parents[1:]) for tree in trees]),
        torch.tensor([tree.depths for tree in trees]),
        torch.full((16,), 7),
        max(tree.max_depth for tree in trees),
    )
    for i, tree in enumerate(trees):
        rows, emitted = walk(tree, tokens[i], drawn[i], 7)
        assert len(rows) > 1
        assert result.tokens[i, : len(rows)].tolist() == emitted
        assert result.rows[i, -1] == rows[-1]


def test_padding_rows_are_never_accepted() -> None:
    """Row 2 continues the walk but is padding; token 0 everywhere must not help."""
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    result = verify_exact(
        tokens,
        torch.zeros(1, 3, dtype=torch.int64),
        torch.tensor([[0, 0, 1]]),
        torch.tensor([[0, 1, 2]]),
        torch.tensor([2]),
        max_depth=2,
    )
    assert result.tokens.tolist() == [[0, 0, PLACEHOLDER]]
    assert result.rows.tolist() == [[0, 1, 1]]
