# SPDX-License-Identifier: Apache-2.0
"""How much probability the base model puts on the guesses of the heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm_medusa.errors import ConfigError

CHUNK = 256
"""Positions whose distributions over the vocabulary lie in memory at a time."""


@dataclass(frozen=True)
class MassSums:
    """Sums over positions.

    Attributes:
        mass: [K][R], probability of each head's guess of each rank.
        positions: [K], positions that each head was measured at.
    """

    mass: list[list[float]]
    positions: list[int]

    def __add__(self, other: MassSums) -> MassSums:
        return MassSums(
            [
                [a + b for a, b in zip(*rows, strict=True)]
                for rows in zip(self.mass, other.mass, strict=True)
            ],
            [a + b for a, b in zip(self.positions, other.positions, strict=True)],
        )

    def table(self) -> list[list[float]]:
        """Mean probability by head and rank, [K][R], rounded to 5 digits.

        Raises:
            ConfigError: a head was measured nowhere.
        """
        if 0 in self.positions:
            head = self.positions.index(0) + 1
            raise ConfigError(
                f"all answers are too short to measure head {head}: give more prompts, "
                "or longer answers with --max-tokens"
            )
        return [
            [round(mass / count, 5) for mass in row]
            for row, count in zip(self.mass, self.positions, strict=True)
        ]


# guesses: [N, K, R] int64, row i: what the heads guess from the state that token i is
#     drawn from, which is tokens i + 1 … i + K, each head's best guess first
# logits: the base model's of rows [begin, end), [end - begin, V]; row i is what token i
#     is drawn from
@torch.no_grad()
def probability_mass(
    guesses: torch.Tensor,
    logits: Callable[[int, int], torch.Tensor],
    temperature: float,
) -> MassSums:
    """Probability that a guess is accepted, given that all guesses before it were.

    Exact acceptance draws the next token from the model's distribution at the request's
    temperature and goes on if it is among the guesses. So a guess of head k made i
    tokens into a text is worth what the model itself, given the text, puts on that
    token at i + k; the mean over texts drawn from the model is what multiplies along a
    path. Counting whether the text's own token was guessed has the same mean, with
    noise of its own. At temperature 0 the distribution is all on the best token, and
    the two are the same.
    """
    num_tokens, num_heads, num_ranks = guesses.shape
    mass = torch.zeros(num_heads, num_ranks, dtype=torch.float64)
    positions = [max(0, num_tokens - head) for head in range(1, num_heads + 1)]
    for begin in range(0, num_tokens, CHUNK):
        end = min(begin + CHUNK, num_tokens)
        law = _distribution(logits(begin, end), temperature)
        for head in range(1, num_heads + 1):
            first = max(begin, head)
            guessed = guesses[first - head : max(first, end) - head, head - 1]
            rows = law[first - begin : end - begin]
            found = rows.gather(1, guessed.to(rows.device))
            mass[head - 1] += found.sum(0, dtype=torch.float64).cpu()
    return MassSums(mass.tolist(), positions)


# logits: [N, V]
def _distribution(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """What a token is drawn from, [N, V] float32."""
    logits = logits.float()
    if temperature > 0:
        return (logits / temperature).softmax(-1)
    best = logits.argmax(-1, keepdim=True)
    return torch.zeros_like(logits).scatter_(1, best, 1.0)
