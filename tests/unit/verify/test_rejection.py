# SPDX-License-Identifier: Apache-2.0
"""Rejection acceptance, step by step; its law is tested in test_law.py."""

from __future__ import annotations

import random

import pytest
import torch

from tests.unit.verify.cases import VOCAB, Case, case
from tests.unit.verify.trees import sibling_tokens
from vllm_medusa.noise import Stream, uniform
from vllm_medusa.tree import cartesian, chain
from vllm_medusa.verify import PLACEHOLDER, verify_exact, verify_rejection


def by_loop(given: Case, request: int) -> tuple[list[int], list[int]]:
    """Rows and tokens of one request: RSD's loop, in float64, all of it spelled out."""
    tree, vocab = given.trees[request], given.logits.shape[1]
    key = given.seeds[request], given.positions[request]
    ids = given.draft_token_ids
    ids = torch.arange(vocab) if ids is None else ids
    row, rows, emitted = 0, [0], []
    while True:
        p = given.logits[given.rows[request, row]].double().softmax(0)
        depth = tree.depths[row]
        q = torch.zeros(vocab, dtype=torch.float64)
        if depth < given.draft_probs.shape[1]:
            q[ids] = given.draft_probs[request, depth].double()
        accepted = None
        children = [r for r in tree.children[row] if r < given.num_rows[request]]
        for attempt, child in enumerate(children):
            token = int(given.tokens[request, child])
            if token < 0 or q[token] == 0:
                break
            q = q / q.sum()
            coin = uniform(Stream.COIN, *key, depth, attempt)
            if coin < min(1.0, float(p[token] / q[token])):
                accepted = child
                break
            p = (p - q).clamp(min=0)
            p = p / p.sum()
            q[token] = 0
        if accepted is None:
            sums = p.cumsum(0)
            number = uniform(Stream.RESIDUAL, *key, dtype=torch.float64)
            emitted.append(int((sums > number * sums[-1]).int().argmax()))
            return rows, emitted
        row = accepted
        rows.append(row)
        emitted.append(int(given.tokens[request, row]))


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(20))
def test_equals_the_loop(seed: int, sharpness: float) -> None:
    given = case(seed, sharpness=sharpness)
    before = given.logits.clone(), given.draft_probs.clone(), given.tokens.clone()
    result = given.run()
    width = given.max_depth + 1
    assert result.tokens.shape == result.rows.shape == (8, width)
    for i in range(8):
        rows, emitted = by_loop(given, i)
        padding = width - len(rows)
        assert result.rows[i].tolist() == rows + rows[-1:] * padding
        assert result.tokens[i].tolist() == emitted + [PLACEHOLDER] * padding
        assert result.num_accepted[i] == len(rows) - 1
        assert result.rows[i, -1] == rows[-1]
    after = given.logits, given.draft_probs, given.tokens
    assert all(map(torch.equal, before, after))


def test_paths_are_accepted_in_these_cases() -> None:
    """The comparison with the loop is not one of empty paths."""
    accepted = torch.cat([case(seed).run().num_accepted for seed in range(20)])
    assert (accepted.bincount(minlength=3)[:3] > 5).all()


def test_a_request_is_what_it_is_alone() -> None:
    given = case(3)
    together = given.run()
    for i in range(8):
        one = slice(i, i + 1)
        alone = verify_rejection(
            given.tokens[one],
            given.logits,
            given.rows[one],
            given.draft_probs[one],
            given.draft_token_ids,
            given.parents[one],
            given.depths[one],
            given.num_rows[one],
            given.seeds[one],
            given.positions[one],
            given.max_children,
            given.max_depth,
        )
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.equal(alone.rows[0], together.rows[i])


@pytest.mark.parametrize("seed", range(10))
def test_one_hot_is_exact(seed: int) -> None:
    """Temperature 0: the path of the most probable tokens, whatever q is."""
    rng = random.Random(seed)
    given = case(seed, batch=24)
    tokens = [sibling_tokens(rng, tree, VOCAB) for tree in given.trees]
    given.tokens = torch.tensor(tokens)
    given.draft_token_ids = None
    given.draft_probs = (torch.arange(24 * VOCAB * given.max_depth) * 1.7).sin()
    given.draft_probs = (
        given.draft_probs.view(24, -1, VOCAB).mul(3 * (seed % 3)).softmax(2)
    )
    best = torch.zeros(24, 8, dtype=torch.int64)
    for i, tree in enumerate(given.trees):
        for row in range(1, 8):
            if rng.random() < 0.7:
                best[i, tree.parents[row]] = tokens[i][row]
    given.logits.fill_(-torch.inf)
    given.logits[given.rows.flatten(), best.flatten()] = 3.0
    found = given.run()
    expected = verify_exact(
        given.tokens,
        best,
        given.parents,
        given.depths,
        given.num_rows,
        given.max_depth,
    )
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.rows, expected.rows)
    assert found.num_accepted.sum() > 10


def one_level(p: torch.Tensor, q: torch.Tensor, tokens: list[int]) -> Case:
    """The same root and candidates in every of 4000 requests."""
    width = 1 + len(tokens)
    return Case(
        [cartesian((len(tokens),))] * 4000,
        torch.tensor([[0, *tokens]]).expand(4000, -1),
        p.log().expand(width, -1),
        torch.zeros(4000, width, dtype=torch.int64),
        q.expand(4000, 1, -1),
        None,
        torch.full((4000,), width),
    )


def test_nothing_left_of_p() -> None:
    """p = q but for rounding, and a candidate that is refused all the same: the token
    still is one of positive probability."""
    q = torch.tensor([0.0, 0.5, 0.5])
    p = torch.tensor([0.0, 0.0, 1.0])
    given = one_level(p, q, [1])
    # More than there is: nothing is left after the refusal.
    given.draft_probs = torch.tensor([0.0, 1.0, 1.0]).expand(4000, 1, -1)
    result = given.run()
    assert result.tokens.tolist() == [[2, PLACEHOLDER]] * 4000


def test_a_sharp_draft_keeps_its_digits() -> None:
    """The second candidate's probability in what q leaves is not 1 - q(first), which
    has no digits left in float32, but exact: here p equals it after the refusal."""
    small = torch.tensor([3e-9, 1e-9])
    q = torch.cat((torch.ones(1), small))
    p = torch.tensor([0.0, 0.75, 0.25])
    # With the first one refused, q is (0, 3/4, 1/4) = p: what comes is accepted.
    assert (one_level(p, q, [0, 1]).run().rows[:, 1] == 2).all()
    assert (one_level(p, q, [0, 2]).run().rows[:, 1] == 2).all()


@pytest.mark.parametrize("impossible", ["negative", "foreign", "zero"])
def test_a_child_that_cannot_be_a_draw_ends_the_attempts(impossible: str) -> None:
    """What comes after it was drawn from a law that nobody knows."""
    p, q = torch.tensor([0.1, 0.4, 0.5]), torch.tensor([0.5, 0.25, 0.25])
    given = one_level(p, q, [0, 1, 2])
    if impossible == "negative":
        given.tokens = torch.tensor([[0, 0, PLACEHOLDER, 2]]).expand(4000, -1)
    elif impossible == "foreign":
        given.draft_token_ids = torch.tensor([0, 2])
        given.draft_probs = torch.tensor([0.6, 0.4]).expand(4000, 1, -1)
    else:
        given.draft_probs = torch.tensor([0.6, 0.0, 0.4]).expand(4000, 1, -1)
    result = given.run()
    assert set(result.rows[:, -1].tolist()) == {0, 1}
    # Rows 2 and 3 are not accepted, but their tokens can be drawn.
    assert set(result.tokens[result.rows[:, -1] == 0, 0].tolist()) == {1, 2}


def test_requests_without_nodes_and_no_requests() -> None:
    given = case(1)
    given.num_rows.fill_(1)
    result = given.run()
    assert result.num_accepted.tolist() == [0] * 8
    assert (result.tokens[:, 0] >= 0).all()
    assert (result.tokens[:, 1:] == PLACEHOLDER).all()
    nobody = verify_rejection(
        given.tokens[:0],
        given.logits,
        given.rows[:0],
        given.draft_probs[:0],
        given.draft_token_ids,
        given.parents[:0],
        given.depths[:0],
        given.num_rows[:0],
        given.seeds[:0],
        given.positions[:0],
        given.max_children,
        given.max_depth,
    )
    assert nobody.tokens.shape == nobody.rows.shape == (0, given.max_depth + 1)


def test_fewer_levels_than_the_output_is_wide() -> None:
    """A cut tree reaches fewer heads; trailing zeros are levels without children."""
    given = case(2)
    given.trees = [chain(7)] * 8
    given.num_rows.fill_(2)
    given.draft_probs = given.draft_probs[:, :1].expand(-1, 7, -1)
    expected = given.run()
    for max_children in ([1], [1, 0], [1, 0, 0]):
        found = verify_rejection(
            given.tokens,
            given.logits,
            given.rows,
            given.draft_probs[:, :1],
            given.draft_token_ids,
            given.parents,
            given.depths,
            given.num_rows,
            given.seeds,
            given.positions,
            max_children,
            7,
        )
        assert found.tokens.shape == (8, 8)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.rows, expected.rows)
