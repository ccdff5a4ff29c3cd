# SPDX-License-Identifier: Apache-2.0
"""Tile sizes and splits of the Triton kernels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_medusa.attention.triton_tiles import (
    MAX_PARTS,
    MAX_ROWS,
    PROGRAMS_PER_PROCESSOR,
    choose_tiles,
    count_parts,
)
from vllm_medusa.errors import UnsupportedError


@pytest.mark.parametrize(
    ("packed_rows", "rows"),
    [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128), (129 * 8, 128)],
)
def test_smallest_tile_that_holds_the_rows(packed_rows: int, rows: int) -> None:
    assert choose_tiles(packed_rows, 128, torch.bfloat16).rows == rows


@given(
    num_programs=st.integers(1, 5000),
    num_processors=st.integers(1, 200),
    max_seq_len=st.integers(1, 200_000),
    tile_keys=st.sampled_from([16, 32, 64]),
)
def test_parts_fit_the_buffers(
    num_programs: int, num_processors: int, max_seq_len: int, tile_keys: int
) -> None:
    parts = count_parts(num_programs, num_processors, max_seq_len, tile_keys)
    assert 1 <= parts <= MAX_PARTS
    assert parts & (parts - 1) == 0
    if parts > 1:
        assert parts * num_programs <= PROGRAMS_PER_PROCESSOR * num_processors
        assert parts * 2 * tile_keys <= max_seq_len


@given(
    packed_rows=st.integers(1, 2000),
    head_size=st.integers(16, 256),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_tiles_are_what_triton_takes(
    packed_rows: int, head_size: int, dtype: torch.dtype
) -> None:
    tiles = choose_tiles(packed_rows, head_size, dtype)
    for size in (tiles.rows, tiles.keys, tiles.num_warps):
        assert size & (size - 1) == 0
    assert 16 <= tiles.rows <= MAX_ROWS
    assert tiles.keys >= 16


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="float16 or bfloat16, not"):
        choose_tiles(1, 64, torch.int8)
    with pytest.raises(UnsupportedError, match="from 16 to 256, not 8"):
        choose_tiles(1, 8, torch.float16)
