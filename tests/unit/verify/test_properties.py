# SPDX-License-Identifier: Apache-2.0
"""What holds for every scheme, whatever the tree, the tokens and the probabilities."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.unit.verify.trees import random_tree
from vllm_medusa.noise import Stream, exponential
from vllm_medusa.verify import (
    PLACEHOLDER,
    Verification,
    row_statistics,
    verify_exact,
    verify_rejection,
    verify_typical,
)

BATCH, VOCAB, HEADS = 6, 12, 7


@dataclass
class Inputs:
    """Trees of a batch, all int64 tensors padded to the same number of rows."""

    tokens: torch.Tensor
    drawn: torch.Tensor
    parents: torch.Tensor
    depths: torch.Tensor
    num_rows: torch.Tensor
    logits: torch.Tensor
    draft_probs: torch.Tensor
    draft_token_ids: torch.Tensor | None
    max_depth: int


def exact(given: Inputs) -> Verification:
    return verify_exact(
        given.tokens,
        given.drawn,
        given.parents,
        given.depths,
        given.num_rows,
        given.max_depth,
    )


def typical(given: Inputs) -> Verification:
    shape = given.tokens.shape
    first_rows = torch.arange(shape[0])[:, None] * shape[1]
    statistics = row_statistics(
        given.logits, given.tokens.flatten(), (first_rows + given.parents).flatten()
    )
    return verify_typical(
        given.tokens,
        given.drawn,
        statistics.logprobs.view(shape),
        statistics.entropies.view(shape),
        given.parents,
        given.depths,
        given.num_rows,
        torch.linspace(0.0, 0.3, shape[0]),
        torch.tensor([0.3, 0.01, torch.inf]).repeat(shape[0])[: shape[0]],
        given.max_depth,
    )


def rejection(given: Inputs) -> Verification:
    num_reqs, width = given.tokens.shape
    return verify_rejection(
        given.tokens,
        given.logits,
        torch.arange(num_reqs * width).view(num_reqs, width),
        given.draft_probs,
        given.draft_token_ids,
        given.parents,
        given.depths,
        given.num_rows,
        torch.arange(num_reqs),
        torch.arange(num_reqs),
        [width - 1] * given.max_depth,
        given.max_depth,
    )


SCHEMES = pytest.mark.parametrize("scheme", [exact, typical, rejection])


def random_inputs(seed: int, repeats: bool) -> Inputs:
    """Trees, tokens and probabilities that have nothing to do with each other.

    With `repeats`, siblings may be equal, as no proposer makes them.
    """
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    num_nodes = rng.randint(1, HEADS)
    trees = [random_tree(rng, num_nodes) for _ in range(BATCH)]
    width = num_nodes + 1
    if repeats:
        tokens = torch.randint(-1, VOCAB, (BATCH, width), generator=generator)
    else:
        order = torch.rand(BATCH, VOCAB, generator=generator).argsort(1)
        tokens = order[:, :width]
    logits = torch.randn(BATCH * width, VOCAB, generator=generator) * rng.choice([1, 9])
    possible = torch.rand(logits.shape, generator=generator) < rng.choice([0.2, 0.8])
    possible[torch.arange(BATCH * width), rng.randrange(VOCAB)] = True
    logits.masked_fill_(~possible, -torch.inf)
    drawn = logits.softmax(1).multinomial(1, generator=generator).view(BATCH, width)
    ids = None
    if rng.random() < 0.5:
        ids = torch.randperm(VOCAB, generator=generator)[: rng.randint(1, VOCAB)]
    size = VOCAB if ids is None else len(ids)
    scores = torch.randn(BATCH, HEADS, size, generator=generator) * rng.choice([1, 30])
    q = scores.softmax(2)
    if rng.random() < 0.5:
        q = torch.where(q < 1 / size, 0, q)
    return Inputs(
        tokens,
        drawn,
        torch.tensor([[0, *tree.parents[1:]] for tree in trees]),
        torch.tensor([tree.depths for tree in trees]),
        torch.tensor([rng.randint(1, width) for _ in trees]),
        logits,
        q,
        ids,
        max(tree.max_depth for tree in trees),
    )


@SCHEMES
@given(seed=st.integers(0, 2**32), repeats=st.booleans())
def test_of_every_step(
    scheme: Callable[[Inputs], Verification], seed: int, repeats: bool
) -> None:
    """At least one token, at most max_depth + 1, of a path, of positive probability."""
    given = random_inputs(seed, repeats)
    result = scheme(given)
    width = given.max_depth + 1
    assert result.tokens.shape == result.rows.shape == (BATCH, width)
    assert result.num_accepted.shape == (BATCH,)
    for tensor in (result.tokens, result.rows, result.num_accepted):
        assert tensor.dtype == torch.int64
    probs = given.logits.softmax(1).view(BATCH, -1, VOCAB)
    for i in range(BATCH):
        count = int(result.num_accepted[i])
        assert 0 <= count <= given.max_depth
        tokens, rows = result.tokens[i].tolist(), result.rows[i].tolist()
        assert all(0 <= token < VOCAB for token in tokens[: count + 1])
        assert tokens[count + 1 :] == [PLACEHOLDER] * (width - count - 1)
        assert rows[0] == 0
        assert rows[count:] == [rows[count]] * (width - count)
        for step in range(count):
            child = rows[step + 1]
            assert 0 < child < given.num_rows[i]
            assert given.parents[i, child] == rows[step]
            assert given.tokens[i, child] == tokens[step]
        assert given.depths[i, rows[count]] == count
        assert all(probs[i, rows[step], tokens[step]] > 0 for step in range(count + 1))
        if scheme is not rejection:
            assert tokens[count] == given.drawn[i, rows[count]]


@SCHEMES
def test_trees_may_be_shared_by_expansion(
    scheme: Callable[[Inputs], Verification],
) -> None:
    """One tree for all requests is an expanded row."""
    given = random_inputs(5, repeats=False)
    given.parents = given.parents[:1].expand(BATCH, -1)
    given.depths = given.depths[:1].expand(BATCH, -1)
    shared = scheme(given)
    given.parents, given.depths = given.parents.clone(), given.depths.clone()
    own = scheme(given)
    assert torch.equal(shared.tokens, own.tokens)
    assert torch.equal(shared.rows, own.rows)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@SCHEMES
def test_needs_no_value_on_the_host(
    scheme: Callable[[Inputs], Verification], seed: int
) -> None:
    """Fake tensors have shapes but no values; see test_no_synchronisation.py."""
    real = random_inputs(seed, repeats=False)
    with FakeTensorMode() as mode:
        fake = Inputs(
            **{
                name: mode.from_tensor(value)
                if isinstance(value, torch.Tensor)
                else value
                for name, value in vars(real).items()
            }
        )
        result = scheme(fake)
        assert result.tokens.shape == result.rows.shape == (BATCH, real.max_depth + 1)
        assert result.rows[:, -1].shape == (BATCH,)


def test_noise_needs_no_value_on_the_host() -> None:
    with FakeTensorMode():
        keys = torch.arange(4)
        noise = exponential(Stream.DRAFT, keys[:, None], keys[:, None], 3, keys)
        assert noise.shape == (4, 4)
