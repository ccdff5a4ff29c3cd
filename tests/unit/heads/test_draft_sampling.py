# SPDX-License-Identifier: Apache-2.0
"""Candidates drawn from the heads have the law of a draw without replacement."""

from __future__ import annotations

from itertools import permutations, product

import torch

from tests.engine.support.law import chi_square
from vllm_medusa.heads.draft_sampling import DraftSampling, draw_drafts

NUM_SAMPLES = 60_000


def sampling(temperature: float, count: int = NUM_SAMPLES) -> DraftSampling:
    return DraftSampling(
        torch.full((count,), temperature),
        torch.arange(count) % 7 - 3,
        torch.arange(count) // 7,
    )


def sequence_probabilities(probs: torch.Tensor, k: int) -> dict[tuple[int, ...], float]:
    """Probability of each ordered draw of k different tokens."""
    table = {}
    for tokens in permutations(range(len(probs)), k):
        chance, left = 1.0, 1.0
        for token in tokens:
            chance *= float(probs[token]) / left
            left -= float(probs[token])
        table[tokens] = chance
    return table


def test_law_of_the_ordered_draw() -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0, 1.0, 0.0], [0.0, 0.1, 0.2, 3.0, -2.0]])
    for temperature in (0.5, 1.0, 2.0):
        drawn, probs = draw_drafts(
            logits.expand(NUM_SAMPLES, -1, -1), 3, sampling(temperature)
        )
        torch.testing.assert_close(probs[0], (logits / temperature).softmax(-1))
        for head in range(2):
            table = sequence_probabilities(probs[0, head].double(), 3)
            samples = map(tuple, drawn[:, head].tolist())
            assert chi_square(samples, table) > 1e-4


def test_heads_draw_independently() -> None:
    logits = torch.zeros(NUM_SAMPLES, 2, 4)
    drawn, _ = draw_drafts(logits, 1, sampling(1.0))
    law = dict.fromkeys(product(range(4), repeat=2), 1 / 16)
    assert chi_square(map(tuple, drawn[..., 0].tolist()), law) > 1e-4


def test_temperature_zero_takes_the_best() -> None:
    logits = torch.randn(50, 3, 40)
    drawn, _ = draw_drafts(logits, 5, sampling(0.0, 50))
    assert torch.equal(drawn, logits.topk(5).indices)


def test_repeatable_and_independent_of_the_batch() -> None:
    logits = torch.randn(20, 2, 30)
    how = sampling(1.0, 20)
    drawn, _ = draw_drafts(logits, 4, how)
    one = slice(7, 8)
    alone = DraftSampling(how.temperature[one], how.seeds[one], how.positions[one])
    assert torch.equal(draw_drafts(logits[one], 4, alone)[0], drawn[one])


def test_columns_without_a_token_are_drawn_last() -> None:
    """Padding of a sharded vocabulary."""
    logits = torch.tensor([0.0, -torch.inf, 1.0, -torch.inf]).expand(500, 1, 4)
    drawn, probs = draw_drafts(logits, 3, sampling(1.0, 500))
    assert set(drawn[:, 0, :2].flatten().tolist()) == {0, 2}
    assert probs[:, 0, [1, 3]].eq(0).all()
