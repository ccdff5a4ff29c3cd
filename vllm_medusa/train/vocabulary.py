# SPDX-License-Identifier: Apache-2.0
"""The draft vocabulary, and the part of it that one training step looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


def most_frequent_tokens(
    tokens: torch.Tensor, vocab_size: int, count: int
) -> torch.Tensor:
    """The `count` most frequent of `tokens`, most frequent first, ties by id.

    Args:
        tokens: [num_tokens] int64.
        vocab_size: size of the base vocabulary.
        count: size of the draft vocabulary, at most `vocab_size`.

    Returns:
        token_map [count] int64.
    """
    frequency = torch.bincount(tokens, minlength=vocab_size)
    return torch.sort(frequency, descending=True, stable=True).indices[:count]


def inverse_map(token_map: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """[vocab_size] int64: index into the draft vocabulary, -1 for tokens outside."""
    inverse = torch.full((vocab_size,), -1, dtype=torch.int64)
    inverse[token_map] = torch.arange(len(token_map))
    return inverse


@dataclass(frozen=True)
class SampledVocabulary:
    """Tokens over which one step's softmax runs.

    Attributes:
        ids: [S] int64, into the draft vocabulary.
        correction: [S] float32, added to logits: a token drawn with probability q
            stands for 1/q tokens, so log(1/q) keeps the sum of exponentials, the
            softmax's denominator, right on average.
        position: [Vd] int64, where a draft token stands in `ids`, or -1.
    """

    ids: torch.Tensor
    correction: torch.Tensor
    position: torch.Tensor


def sample_vocabulary(
    draft_vocab: int,
    size: int,
    targets: torch.Tensor,
    generator: torch.Generator,
) -> SampledVocabulary:
    """Draw the tokens of one step: frequent ones, the step's targets, random others.

    Args:
        draft_vocab: size of the draft vocabulary, Vd.
        size: tokens wanted; more if there are more targets, all if at least Vd.
        targets: int64 of any shape, indices into the draft vocabulary, -1 ignored.
        generator: source of the draw.
    """
    if size >= draft_vocab:
        everything = torch.arange(draft_vocab)
        return SampledVocabulary(everything, torch.zeros(draft_vocab), everything)
    certain = torch.zeros(draft_vocab, dtype=torch.bool)
    certain[: size // 2] = True  # the map is ordered by frequency
    certain[targets[targets >= 0]] = True
    kept = torch.nonzero(certain)[:, 0]
    others = torch.nonzero(~certain)[:, 0]
    count = max(0, size - len(kept))
    drawn = others[torch.randperm(len(others), generator=generator)[:count]]
    ids = torch.cat([kept, drawn])
    correction = torch.zeros(len(ids))
    if count:
        correction[len(kept) :] = math.log(len(others) / count)
    position = torch.full((draft_vocab,), -1, dtype=torch.int64)
    position[ids] = torch.arange(len(ids))
    return SampledVocabulary(ids, correction, position)
