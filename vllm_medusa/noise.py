# SPDX-License-Identifier: Apache-2.0
"""Random numbers that are a function of their key: no generator, no state.

Whoever knows a request's seed and a position knows the numbers drawn there: the
same on every device and every rank, whatever else is in the batch, and again after
a preemption.
"""

from __future__ import annotations

from enum import IntEnum

import torch


class Stream(IntEnum):
    """What a number is used for. Numbers of different streams are independent, so
    that a draft and the coin that judges it never are the same noise."""

    DRAFT = 1
    """Drawing candidates from the heads."""
    COIN = 2
    """Accepting or refusing a candidate."""
    RESIDUAL = 3
    """The token after the accepted ones."""


# Increment and finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable
# pseudorandom number generators", OOPSLA 2014, with Stafford's "Mix13" constants).
_INCREMENT = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_MASK_64 = (1 << 64) - 1


def uniform(
    stream: Stream,
    # int64, any shapes that broadcast
    seeds: torch.Tensor,
    positions: torch.Tensor,
    *indices: torch.Tensor | int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return numbers uniform on the open interval (0, 1), one per key.

    A key is (stream, seed, position, *indices); the result has the shape that the
    arguments broadcast to. Keys are hashed one part after another, so the parts
    before the last are hashed in their own small shape: give the longest last.

    Numbers near 0 have the full relative precision of `dtype` (the smallest is
    2**-63), so that an event of probability 1e-12 has that probability. The largest
    is the largest number of `dtype` below 1.

    Args:
        stream: what the numbers are for.
        seeds: int64, of the requests.
        positions: int64, in the request's text.
        indices: int64, whatever tells apart the numbers drawn at one position; a
            stream must always be used with the same number of them.
        dtype: float32 or float64.
    """
    state = _mix(seeds + _signed(_INCREMENT * (stream + 1)))
    for part in (positions, *indices):
        if isinstance(part, int):
            state = _mix(state + _signed(_INCREMENT * (part + 1)))
        else:
            state = _mix(state + (part + 1) * _signed(_INCREMENT))
    # An odd number of 63 bits is never 0; rounding may make it 2**63.
    numbers = _shift_right(state, 1).bitwise_or_(1).to(dtype)
    return numbers.mul_(2.0**-63).clamp_(max=1 - torch.finfo(dtype).eps / 2)


def exponential(
    stream: Stream,
    # int64, any shapes that broadcast
    seeds: torch.Tensor,
    positions: torch.Tensor,
    *indices: torch.Tensor | int,
) -> torch.Tensor:
    """Return float32 numbers of the exponential law of mean 1, above 0 and finite.

    Arguments as of `uniform`. Of tokens with probabilities q, the one with the
    largest log q - log(exponential) is a draw from q, and the k with the largest are
    k draws without replacement ("Gumbel top-k": Kool et al., arXiv 1903.06059).
    """
    # Of u and 1 - u, both uniform, u has the digits where the largest are decided:
    # at exponentials near 0.
    numbers = uniform(stream, seeds, positions, *indices)
    return numbers.neg_().log1p_().neg_()


def _signed(value: int) -> int:
    """The int64 of the same 64 bits."""
    value &= _MASK_64
    return value - (1 << 64) if value >> 63 else value


# any shape, int64
def _mix(state: torch.Tensor) -> torch.Tensor:
    """Hash each number; `state` itself is overwritten. Products wrap around."""
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        state.bitwise_xor_(_shift_right(state, shift)).mul_(_signed(factor))
    return state.bitwise_xor_(_shift_right(state, _SHIFTS[-1]))


# any shape, int64
def _shift_right(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift as if unsigned: what `>>` fills with the sign is cleared."""
    return (numbers >> bits).bitwise_and_((1 << (64 - bits)) - 1)
