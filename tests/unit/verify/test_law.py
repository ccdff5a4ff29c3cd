# SPDX-License-Identifier: Apache-2.0
"""Exact and rejection acceptance keep the model's law, whatever the candidates.

The joint law of three tokens is compared with ancestral sampling by a chi-square
test. Noise is a function of fixed seeds: a test that passes keeps passing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from tests.engine.support.law import chi_square
from tests.unit.verify.markov import (
    Order,
    Step,
    Toy,
    Trees,
    generate,
    in_order_of_draws,
)
from vllm_medusa.tree import TokenTree, cartesian, chain
from vllm_medusa.verify import Verification, rejection, verify_exact, verify_rejection

VOCAB = 6
START = 2
SAMPLES = 20_000
LENGTH = 3
# A right rule fails once in 10,000 choices of the seeds.
P_VALUE = 1e-4

TREES = {
    "chain": (chain(3),),
    "wide": (cartesian((4,)),),
    "cartesian": (cartesian((3, 2)),),
    # Nodes of one depth with different numbers of children.
    "uneven": (
        TokenTree.from_paths([[0], [1], [0, 0], [2], [0, 1], [1, 0], [0, 0, 0]]),
    ),
    "by request": (chain(2), cartesian((2, 2)), cartesian((3,))),
}


def toy(seed: int, scale: float = 1.0) -> Toy:
    """Heads know something of the model, but by far not all."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(VOCAB, VOCAB, generator=generator) * scale
    noise = torch.randn(VOCAB, 3, VOCAB, generator=generator)
    return Toy(logits, 0.7 * logits[:, None] + noise)


def sharp(factor: float) -> Toy:
    """One token has nearly all of q, so that little is left after it."""
    one = toy(5, scale=1.5)
    return Toy(one.logits, factor * one.draft_logits)


def keep_best(logits: torch.Tensor, count: int) -> torch.Tensor:
    least = logits.topk(count, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def truncated() -> Toy:
    """Top-k: half of the vocabulary has probability 0; heads have other zeros."""
    one = toy(1)
    scores = keep_best(one.draft_logits, 4)
    # The later draws of a list of 4 that holds only 2 tokens have probability 0.
    scores[::2] = keep_best(scores[::2], 2)
    return Toy(keep_best(one.logits, 3), scores)


def small_draft_vocabulary(size: int = 4) -> Toy:
    one = toy(2)
    ids = torch.tensor([5, 0, 3, 1])[:size]
    return Toy(one.logits, one.draft_logits[..., ids], ids)


def disjoint() -> Toy:
    """After some tokens the model never says what the heads propose."""
    one = small_draft_vocabulary()
    logits = one.logits.clone()
    for token in (0, 4):
        logits[token, one.draft_token_ids] = -torch.inf
    return Toy(logits, one.draft_logits, one.draft_token_ids)


def identical() -> Toy:
    """Head 1 is the model: every first candidate must be accepted."""
    one = toy(3)
    scores = one.draft_logits.clone()
    scores[:, 0] = one.logits
    return Toy(one.logits, scores)


TOYS = {
    "plain": lambda: toy(0),
    "sharp": lambda: sharp(8),
    # What is left of q after the first draw underflows, partly or wholly.
    "underflow": lambda: sharp(50),
    "truncated": truncated,
    "small draft vocabulary": small_draft_vocabulary,
    "one token drafted": lambda: small_draft_vocabulary(1),
    "disjoint": disjoint,
    "identical": identical,
}


def by_rejection(
    toy: Toy,
    trees: Trees,
    tokens: torch.Tensor,
    draft_probs: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> Verification:
    # The logits of a tree row are the toy's row of its token.
    return verify_rejection(
        tokens,
        toy.logits,
        tokens,
        draft_probs,
        toy.draft_token_ids,
        trees.parents,
        trees.depths,
        trees.num_rows,
        seeds,
        positions,
        trees.max_children,
        trees.max_depth,
    )


def exactly(seed: int, unseen: float = 0) -> Step:
    """`verify_exact` with a generator's draws; a wrong one takes the first candidate
    as drawn in a part of the requests."""
    generator = torch.Generator().manual_seed(seed)

    def step(
        toy: Toy, trees: Trees, tokens: torch.Tensor, *_: torch.Tensor
    ) -> Verification:
        probs = toy.logits.softmax(1)[tokens]
        drawn = probs.flatten(0, 1).multinomial(1, generator=generator)
        drawn = drawn.view_as(tokens)
        is_wrong = torch.rand(len(tokens), generator=generator) < unseen
        drawn[:, 0] = torch.where(is_wrong, tokens[:, 1], drawn[:, 0])
        return verify_exact(
            tokens,
            drawn,
            trees.parents,
            trees.depths,
            trees.num_rows,
            trees.max_depth,
        )

    return step


def p_value(
    toy: Toy, trees: Trees, step: Step, order: Order = in_order_of_draws
) -> tuple[float, float]:
    """Of the joint law of `LENGTH` tokens; and the tokens per step."""
    text, tokens_per_step = generate(toy, trees, START, LENGTH, step, order)
    samples = map(tuple, text.tolist())
    return chi_square(samples, toy.law(START, LENGTH)), tokens_per_step


@pytest.mark.parametrize("trees", TREES)
@pytest.mark.parametrize("name", TOYS)
def test_rejection(name: str, trees: str) -> None:
    found, tokens_per_step = p_value(
        TOYS[name](), Trees(TREES[trees], SAMPLES), by_rejection
    )
    assert found > P_VALUE
    assert tokens_per_step > 1.05


@pytest.mark.parametrize("trees", ["uneven", "by request"])
@pytest.mark.parametrize("name", ["plain", "small draft vocabulary"])
def test_rejection_of_cut_trees(name: str, trees: str) -> None:
    batch = Trees(TREES[trees], SAMPLES, is_cut=True)
    found, tokens_per_step = p_value(TOYS[name](), batch, by_rejection)
    assert found > P_VALUE
    assert tokens_per_step > 1.05


@pytest.mark.parametrize("trees", TREES)
@pytest.mark.parametrize("name", ["plain", "truncated", "small draft vocabulary"])
def test_exact(name: str, trees: str) -> None:
    batch = Trees(TREES[trees], SAMPLES, is_cut=True)
    found, tokens_per_step = p_value(TOYS[name](), batch, exactly(seed=0))
    assert found > P_VALUE
    assert tokens_per_step > 1.05


def test_perfect_heads_are_always_right() -> None:
    """p = q accepts the first candidate in every request."""
    batch = Trees((cartesian((3,)),), SAMPLES)
    _, tokens_per_step = p_value(identical(), batch, by_rejection)
    assert tokens_per_step > 2 - 1e-3


def test_more_candidates_are_accepted_more_often() -> None:
    """And drawing without replacement pays: all of the vocabulary is always right."""
    rates = [
        p_value(toy(0), Trees((cartesian((width,)),), SAMPLES), by_rejection)[1]
        for width in range(1, VOCAB + 1)
    ]
    assert all(more > fewer + 0.01 for fewer, more in pairwise(rates[:-1]))
    assert rates[-1] == 2.0


def sorted_draws(
    draft_logits: torch.Tensor, exponentials: torch.Tensor
) -> torch.Tensor:
    """The same draws, but the most probable of the first three first."""
    drawn = in_order_of_draws(draft_logits, exponentials)[..., :3]
    of_drawn = draft_logits.gather(2, drawn)
    return drawn.gather(2, of_drawn.argsort(dim=2, descending=True))


def other_temperature(toy: Toy, trees: Trees, *rest: torch.Tensor) -> Verification:
    """Verified with probabilities other than those that the draws were made with."""
    tokens, draft_probs, seeds, positions = rest
    warmer = (draft_probs.log() / 1.25).softmax(2)
    return by_rejection(toy, trees, tokens, warmer, seeds, positions)


WRONG: dict[str, tuple[Step, Order]] = {
    "unseen": (exactly(0, unseen=1 / 8), in_order_of_draws),
    "sorted": (by_rejection, sorted_draws),
    "temperature": (other_temperature, in_order_of_draws),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_told_apart(name: str) -> None:
    found, _ = p_value(toy(0), Trees(TREES["cartesian"], SAMPLES), *WRONG[name])
    assert found < P_VALUE


Wrap = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def test_a_wrong_residual_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last token drawn from p instead of what refusals left of it."""
    right: Wrap = rejection._try_children

    def forgetful(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        child, removed = right(*args)
        return child, torch.zeros_like(removed)

    monkeypatch.setattr(rejection, "_try_children", forgetful)
    found, _ = p_value(toy(0), Trees(TREES["cartesian"], SAMPLES), by_rejection)
    assert found < P_VALUE
