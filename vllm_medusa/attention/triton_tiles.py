# SPDX-License-Identifier: Apache-2.0
"""Tile sizes of the Triton kernels and the parts a context is split into.

Chosen on the host from sizes alone, from a small table: tuning by trial can't happen
while a CUDA graph is captured, and device values are not known there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from vllm_medusa.errors import UnsupportedError

MAX_ROWS = 128
"""Packed rows of the largest tile."""
MAX_PARTS = 32
"""More would make joining the parts cost more than the split wins."""
PROGRAMS_PER_PROCESSOR = 2
"""Programs per streaming multiprocessor that a split aims at and never exceeds."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Launch constants of `attend_rows`.

    A program fits the 99 KiB of shared memory of an L4 (compute capability 8.9) and
    spills next to no registers, compiled for A100, L4 and H100; A100 has 163 KiB,
    H100 227 KiB.
    """

    rows: int
    """Packed rows (rows of the tree times query heads per KV head)."""
    keys: int
    num_warps: int
    num_stages: int


@cache
def choose_tiles(packed_rows: int, head_size: int, dtype: torch.dtype) -> Tiles:
    """Return the tiles for queries of `dtype` with `packed_rows` rows in a request.

    Raises:
        UnsupportedError: for head sizes or types that the kernels don't take.
    """
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UnsupportedError(
            f"Triton tree attention takes queries of float32, float16 or bfloat16, "
            f"not {dtype}: choose another --dtype"
        )
    if not 16 <= head_size <= 256:
        raise UnsupportedError(
            f"Triton tree attention takes head sizes from 16 to 256, not {head_size}: "
            "serve this model without Medusa"
        )
    if dtype == torch.float32:
        # Full float32 products run on the plain cores, whose registers hold little.
        return Tiles(rows=16, keys=16, num_warps=4, num_stages=2)
    largest = MAX_ROWS if head_size <= 128 else 64
    rows = 16
    while rows < min(packed_rows, largest):
        rows *= 2
    # No more than the registers of a program hold: the output tile stays in them.
    keys = 64 if rows * head_size <= 32 * 128 else 32
    num_warps = 8 if rows == MAX_ROWS or rows * head_size > 64 * 128 else 4
    return Tiles(rows, keys, num_warps, num_stages=2 if num_warps == 8 else 3)


def count_parts(
    num_programs: int, num_processors: int, max_seq_len: int, tile_keys: int
) -> int:
    """Return into how many parts (a power of two) to split every context.

    Args:
        num_programs: programs without a split.
        num_processors: streaming multiprocessors of the device.
        max_seq_len: upper bound of the lengths, known on the host.
        tile_keys: keys of a tile; a part has two tiles at least if lengths are at
            their bound.
    """
    most = min(
        PROGRAMS_PER_PROCESSOR * num_processors // num_programs,
        max_seq_len // (2 * tile_keys),
        MAX_PARTS,
    )
    return 1 << (max(most, 1).bit_length() - 1)
