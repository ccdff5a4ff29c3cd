# SPDX-License-Identifier: Apache-2.0
"""Drawing from weights with one uniform number per draw."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Tokens of a block of the vocabulary.
_BLOCK = 128
# Below 1 by more than sums in float64 are wrong.
_LARGEST = 1 - 2.0**-40


# [num_reqs] int64
def draw(
    # [num_reqs, vocab_size] float32, not negative
    weights: torch.Tensor,
    # [num_reqs] float64 in (0, 1)
    numbers: torch.Tensor,
) -> torch.Tensor:
    """Draw a token of positive weight; the first one where all weights are 0.

    By inversion, first a block of the vocabulary and then a token in it, so that only
    small sums are needed in float64.
    """
    padded = F.pad(weights, (0, -weights.shape[1] % _BLOCK))
    blocks = padded.unflatten(1, (-1, _BLOCK))
    block, numbers = _invert(blocks.sum(dim=2), numbers)
    index = block[:, None, None].expand(-1, 1, _BLOCK)
    token, _ = _invert(blocks.gather(1, index)[:, 0], numbers)
    return block * _BLOCK + token


# ([num_reqs] int64, [num_reqs] float64)
def _invert(
    # [num_reqs, num_weights] float32
    weights: torch.Tensor,
    # [num_reqs] float64 in (0, 1)
    numbers: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index of the weight that each number falls on, and how far into it:
    again a uniform number. NaN where all weights are 0."""
    sums = weights.cumsum(dim=1, dtype=torch.float64)
    limit = numbers.clamp(max=_LARGEST)[:, None] * sums[:, -1:]
    # Without the second condition, rounding in a parallel sum might choose a weight
    # of 0.
    is_above = (sums > limit) & (weights > 0)
    index = is_above.to(torch.uint8).argmax(dim=1, keepdim=True)
    weight = weights.gather(1, index)
    within = (limit - sums.gather(1, index) + weight) / weight
    return index[:, 0], within[:, 0].clamp(min=0)
