# SPDX-License-Identifier: Apache-2.0
"""Typical acceptance against a direct reading of arXiv 2401.10774, section 2.3.1."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch

from tests.unit.verify.trees import random_tree, sibling_tokens
from vllm_medusa.tree import TokenTree, cartesian, chain
from vllm_medusa.verify import (
    PLACEHOLDER,
    Verification,
    row_statistics,
    verify_exact,
    verify_typical,
)

VOCAB = 9


def path_to(tree: TokenTree, row: int) -> list[int]:
    """Rows from the root to `row`."""
    path = [row]
    while path[0] > 0:
        path.insert(0, tree.parents[path[0]])
    return path


def by_formula(
    tree: TokenTree,
    tokens: list[int],
    drawn: list[int],
    # probabilities by row and token
    probs: list[list[float]],
    num_rows: int,
    epsilon: float,
    delta: float,
) -> tuple[list[int], list[int]]:
    """Rows and tokens of the path that the paper keeps, one path after the other."""
    best = ([0], 0.0)
    for row in range(1, num_rows):
        path = path_to(tree, row)
        likelihood = 0.0
        for parent, child in pairwise(path):
            p = probs[parent]
            entropy = -sum(x * math.log(x) for x in p if x > 0)
            of_token = p[tokens[child]] if tokens[child] >= 0 else 0.0
            if not of_token > min(epsilon, delta * math.exp(-entropy)):
                break
            likelihood += math.log(of_token)
        else:
            if (len(path), likelihood) > (len(best[0]), best[1]):
                best = (path, likelihood)
    rows = best[0]
    return rows, [tokens[row] for row in rows[1:]] + [drawn[rows[-1]]]


def run(
    trees: list[TokenTree],
    tokens: list[list[int]],
    drawn: list[list[int]],
    logits: torch.Tensor,
    num_rows: list[int],
    epsilon: list[float],
    delta: list[float],
) -> Verification:
    """Statistics and verification of trees of the same number of rows."""
    batch, width = logits.shape[:2]
    parents = torch.tensor([[0, *tree.parents[1:]] for tree in trees])
    first_rows = torch.arange(batch)[:, None] * width
    row_tokens = torch.tensor(tokens)
    statistics = row_statistics(
        logits.flatten(0, 1), row_tokens.flatten(), (first_rows + parents).flatten()
    )
    return verify_typical(
        row_tokens,
        torch.tensor(drawn),
        statistics.logprobs.view(batch, width),
        statistics.entropies.view(batch, width),
        parents,
        torch.tensor([tree.depths for tree in trees]),
        torch.tensor(num_rows),
        torch.tensor(epsilon),
        torch.tensor(delta),
        max(tree.max_depth for tree in trees),
    )


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_formula(seed: int) -> None:
    """A batch of different, cut trees; some tokens impossible, some missing."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    batch, num_nodes = 24, rng.randint(1, 8)
    trees = [random_tree(rng, num_nodes) for _ in range(batch)]
    tokens = [sibling_tokens(rng, tree, VOCAB) for tree in trees]
    for row_tokens in tokens:
        for row in range(1, num_nodes + 1):
            if rng.random() < 0.05:
                row_tokens[row] = PLACEHOLDER
    logits = torch.randn(batch, num_nodes + 1, VOCAB, generator=generator)
    logits *= rng.choice([0.5, 1.0, 2.0, 5.0])
    is_cut = torch.rand(logits.shape, generator=generator) < 0.2
    is_cut[..., 0] = False
    logits.masked_fill_(is_cut, -torch.inf)
    drawn = [[rng.randrange(VOCAB) for _ in row_tokens] for row_tokens in tokens]
    num_rows = [rng.randint(1, num_nodes + 1) for _ in range(batch)]
    epsilon = [rng.choice([0.01, 0.09, 0.25, 0.6]) for _ in range(batch)]
    delta = [rng.choice([0.1, 0.3, 1.0, math.inf]) for _ in range(batch)]

    result = run(trees, tokens, drawn, logits, num_rows, epsilon, delta)
    width = max(tree.max_depth for tree in trees) + 1
    assert result.tokens.shape == result.rows.shape == (batch, width)
    probs = logits.double().softmax(2).tolist()
    for i in range(batch):
        rows, emitted = by_formula(
            trees[i], tokens[i], drawn[i], probs[i], num_rows[i], epsilon[i], delta[i]
        )
        padding = width - len(rows)
        assert result.num_accepted[i] == len(rows) - 1
        assert result.rows[i].tolist() == rows + rows[-1:] * padding
        assert result.tokens[i].tolist() == emitted + [PLACEHOLDER] * padding


def uniform_chain(width: int) -> torch.Tensor:
    """Logits of a chain of one node whose root has `width` equal tokens."""
    logits = torch.full((1, 2, VOCAB), -torch.inf)
    logits[:, :, :width] = 0
    return logits


@pytest.mark.parametrize(
    ("epsilon", "delta", "accepts"),
    [
        # p = 1/4 and exp(-H) = 1/4
        (0.09, 0.3, True),
        (0.3, 0.9, True),  # delta·exp(-H) = 0.225 is the smaller one
        (0.24, 9.0, True),
        (0.26, math.inf, False),
        (0.24, math.inf, True),
        (0.26, 1.1, False),
    ],
)
def test_threshold(epsilon: float, delta: float, accepts: bool) -> None:
    result = run(
        [chain(1)], [[0, 3]], [[7, 8]], uniform_chain(4), [2], [epsilon], [delta]
    )
    assert result.tokens.tolist() == [[3, 8] if accepts else [7, PLACEHOLDER]]


def test_longest_path_then_likelihood_then_first_row() -> None:
    """Three plausible nodes, each with a child that may or may not be plausible."""
    tree = cartesian((3, 1))
    row_of = {path: row for row, path in enumerate(tree.paths, start=1)}
    tokens = [0] * 7
    for first in range(3):
        tokens[row_of[(first,)]] = first
        tokens[row_of[(first, 0)]] = 3
    logits = torch.zeros(1, 7, VOCAB)

    def best(first: list[float], second: list[float]) -> list[int]:
        """Emitted tokens, by the logits of tokens 0, 1, 2 and of 3 after each."""
        for token in range(3):
            logits[0, 0, token] = first[token]
            logits[0, row_of[(token,)], 3] = second[token]
        result = run([tree], [tokens], [[8] * 7], logits, [7], [0.1], [math.inf])
        return result.tokens.tolist()[0]

    falling, no, yes = [4.0, 3.5, 3.0], -9.0, 9.0
    assert best(falling, [no, no, no]) == [0, 8, PLACEHOLDER]
    # Only the least probable branch goes on: length comes first.
    assert best(falling, [no, no, yes]) == [2, 3, 8]
    assert best(falling, [no, yes, yes]) == [1, 3, 8]
    # The first node is the better one, but the sum decides.
    assert best(falling, [1.5, yes, no]) == [1, 3, 8]
    assert row_of[(0, 0)] < row_of[(1, 0)] < row_of[(2, 0)]
    assert best([3.0, 4.0, 4.0], [yes, yes, yes]) == [1, 3, 8]
    assert best([4.0, 4.0, 4.0], [yes, yes, yes]) == [0, 3, 8]


@pytest.mark.parametrize("seed", range(10))
def test_one_hot_is_exact(seed: int) -> None:
    """Temperature 0: the path of the most probable tokens."""
    rng = random.Random(seed)
    batch = 24
    tree = random_tree(rng, 8)
    tokens = [sibling_tokens(rng, tree, VOCAB) for _ in range(batch)]
    generator = torch.Generator().manual_seed(seed)
    best = torch.randint(VOCAB, (batch, 9), generator=generator)
    for i in range(batch):
        for row in range(1, 9):
            if rng.random() < 0.6:
                best[i, tree.parents[row]] = tokens[i][row]
    logits = torch.full((batch, 9, VOCAB), -torch.inf)
    logits.scatter_(2, best[..., None], 3.0)
    found = run(
        [tree] * batch,
        tokens,
        best.tolist(),
        logits,
        [9] * batch,
        [0.09] * batch,
        [0.3] * batch,
    )
    expected = verify_exact(
        torch.tensor(tokens),
        best,
        torch.tensor([0, *tree.parents[1:]]).expand(batch, -1),
        torch.tensor(tree.depths).expand(batch, -1),
        torch.full((batch,), 9),
        tree.max_depth,
    )
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.rows, expected.rows)
    assert found.num_accepted.sum() > 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics(dtype: torch.dtype) -> None:
    """Against float64, with what top-k and far too small logits leave."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(7, 500, generator=generator) * 4 + 1e3).to(dtype)
    logits[1, 3:] = -torch.inf
    logits[2, 1:] = -torch.inf
    logits[3, :] = 0
    logits[4, 5:] = -1e30
    kept = logits.clone()
    tokens = torch.tensor([0, 2, 7, 0, 4, PLACEHOLDER, 9])
    parents = torch.tensor([0, 0, 1, 2, 1, 4, 5])
    found = row_statistics(logits, tokens, parents)
    expected = kept.double().log_softmax(1)
    entropies = torch.special.entr(expected.exp()).sum(1)
    assert found.logprobs.dtype == found.entropies.dtype == torch.float32
    torch.testing.assert_close(
        found.entropies.double(), entropies, atol=2e-5, rtol=1e-5
    )
    logprobs = expected[parents, tokens]
    logprobs[5] = -torch.inf
    assert logprobs[[2, 4]].isinf().all()
    torch.testing.assert_close(found.logprobs.double(), logprobs, atol=2e-4, rtol=1e-5)
    assert torch.equal(logits, kept)


def test_a_row_without_distribution_accepts_nothing() -> None:
    """Should all logits be -inf (a fault elsewhere), nothing spreads."""
    logits = torch.zeros(1, 3, VOCAB)
    logits[0, 1] = -torch.inf
    result = run([chain(2)], [[0, 3, 4]], [[7, 8, 8]], logits, [3], [0.09], [0.9])
    assert result.tokens.tolist() == [[3, 8, PLACEHOLDER]]
