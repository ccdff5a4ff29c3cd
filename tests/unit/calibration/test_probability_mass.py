# SPDX-License-Identifier: Apache-2.0
"""The probability of the heads' guesses, against its definition."""

from __future__ import annotations

import pytest
import torch

from vllm_medusa.calibration import probability_mass as module
from vllm_medusa.calibration.probability_mass import MassSums, probability_mass
from vllm_medusa.errors import ConfigError

TOKENS, HEADS, RANKS, VOCAB = 11, 3, 4, 9


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("chunk", [2, 4, 256])
def test_is_what_the_model_gives_to_each_guess_at_its_position(
    monkeypatch: pytest.MonkeyPatch, temperature: float, chunk: int
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    torch.manual_seed(0)
    logits = torch.randn(TOKENS, VOCAB)
    guesses = torch.rand(TOKENS, HEADS, VOCAB).argsort(-1)[..., :RANKS]
    sums = probability_mass(guesses, lambda a, b: logits[a:b], temperature)
    assert sums.positions == [10, 9, 8]
    for head in range(1, HEADS + 1):
        for rank in range(RANKS):
            expected = 0.0
            for row in range(TOKENS - head):
                law = logits[row + head]
                token = int(guesses[row, head - 1, rank])
                if temperature == 0:
                    expected += float(int(law.argmax()) == token)
                else:
                    expected += float((law / temperature).softmax(-1)[token])
            assert sums.mass[head - 1][rank] == pytest.approx(expected, abs=1e-5)


def test_mass_has_the_mean_of_hits_on_drawn_text() -> None:
    """Against the share of drawn tokens that were guessed, to 4 standard errors."""
    torch.manual_seed(0)
    count = 20_000
    law = torch.randn(VOCAB).softmax(-1)
    guesses = law.topk(RANKS).indices.expand(count, 1, RANKS)
    sums = probability_mass(guesses, lambda a, b: law.log().expand(b - a, -1), 1.0)
    drawn = law.multinomial(count, replacement=True)
    hits = (drawn[1:, None] == guesses[0, 0]).float().mean(0)
    for mean, share in zip(sums.table()[0], hits.tolist(), strict=True):
        assert mean == pytest.approx(share, abs=4 * (0.25 / count) ** 0.5)


def test_answers_too_short_for_a_head() -> None:
    guesses = torch.zeros(2, HEADS, RANKS, dtype=torch.int64)
    short = probability_mass(guesses, lambda a, b: torch.zeros(b - a, VOCAB), 0.0)
    assert short.positions == [1, 0, 0]
    with pytest.raises(ConfigError, match=r"measure head 2.*--max-tokens"):
        short.table()
    long = MassSums([[2.0], [1.0], [0.5]], [4, 3, 2])
    total = MassSums([[1.0], [0.0], [0.0]], [1, 0, 0]) + long
    assert total.table() == [[0.6], [0.33333], [0.25]]
