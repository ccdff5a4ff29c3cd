# SPDX-License-Identifier: Apache-2.0
"""Draws by inversion: their law, and the ends of the numbers they are made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_medusa.noise import Stream, uniform
from vllm_medusa.verify.inversion import draw


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    statistic = ((counts - expected) ** 2 / expected).sum()
    half_freedom = torch.tensor((len(counts) - 1) / 2).double()
    return torch.special.gammaincc(half_freedom, statistic / 2).item()


@pytest.mark.parametrize("vocab", [2, 127, 128, 129, 700])
def test_law(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    weights = torch.rand(vocab, generator=generator)
    weights[torch.rand(vocab, generator=generator) < 0.3] = 0
    weights[-1] = 0.5
    count = 40_000
    seeds = torch.arange(count)
    numbers = uniform(Stream.RESIDUAL, seeds, seeds, dtype=torch.float64)
    drawn = draw(weights.expand(count, -1) * 7, numbers)
    counts = drawn.bincount(minlength=vocab).double()
    is_possible = weights > 0
    assert counts[~is_possible].sum() == 0
    expected = weights.double() / weights.double().sum() * count
    assert chi_square(counts[is_possible], expected[is_possible]) > 1e-4


@given(
    seed=st.integers(0, 2**32),
    vocab=st.integers(1, 400),
    number=st.sampled_from([2.0**-63, 1e-12, 0.5, 1 - 2.0**-24, 1 - 2.0**-53]),
    scale=st.sampled_from([1.0, 1e-20, 1e20]),
)
def test_never_a_weight_of_zero(seed, vocab, number, scale):
    """Weights of very different size, most of them 0, and any number."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(8, vocab, generator=generator).mul(8).exp()
    weights[torch.rand(8, vocab, generator=generator) < 0.9] = 0
    weights[torch.arange(8), torch.randint(vocab, (8,), generator=generator)] = 1
    drawn = draw(weights * scale, torch.full((8,), number, dtype=torch.float64))
    assert drawn.dtype == torch.int64
    assert (weights.gather(1, drawn[:, None]) > 0).all()


def test_small_weights_among_many() -> None:
    """A number just above what comes before a weight of 1e-9 falls on it."""
    weights = torch.full((1, 50_000), 1e-9)
    weights[0, 0] = 1.0
    total = weights.double().sum()
    for token in (1, 127, 128, 40_000, 49_999):
        middle = (1.0 + (token - 0.5) * 1e-9) / total
        drawn = draw(weights, middle[None])
        assert abs(drawn.item() - token) <= 1


def test_without_any_weight() -> None:
    """The caller must know; nothing breaks."""
    numbers = torch.full((2,), 0.5, dtype=torch.float64)
    assert draw(torch.zeros(2, 200), numbers).tolist() == [0, 0]
