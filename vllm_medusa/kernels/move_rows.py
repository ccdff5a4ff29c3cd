# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 (a kernel's constants are in upper case)
"""Commit accepted paths in the paged KV cache of all layers at once.

A tree row r writes its key and value to the slot of position base + r. If the row
is accepted at depth d, the next step expects them at position base + d.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from vllm.triton_utils import tl, triton

from vllm_medusa.kernels.backend import use_triton
from vllm_medusa.kernels.cache_views import ViewGroup, group_views

_MAX_BLOCK = 1024
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RowMover:
    """Moves rows in the layers of one KV cache group.

    Layers whose caches have the same shape, strides and element size share a launch;
    keys and values do too where they are alike. Rows are copied as integers, so any
    element type will do.
    """

    def __init__(
        self,
        # per layer: keys and values, [num_blocks, block_size, num_kv_heads, head_size]
        # views of any strides; layers may share them
        caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        self._groups = group_views([view for layer in caches for view in layer])

    def move(
        self,
        # [num_reqs, max_blocks] int32
        block_table: torch.Tensor,
        # [num_reqs] int32 or int64, position of each root, inside the block table
        bases: torch.Tensor,
        # [num_reqs, max_depth + 1] int32, of `Walk`
        rows: torch.Tensor,
        # [num_reqs] int32, of `Walk`
        num_sampled: torch.Tensor,
    ) -> None:
        """Copy row rows[i, d] to position bases[i] + d, for 1 <= d < num_sampled[i]."""
        for group in self._groups:
            if use_triton(group.addresses):
                _launch(group, block_table, bases, rows, num_sampled)
            else:
                move_rows_reference(group.views, block_table, bases, rows, num_sampled)


def _launch(
    group: ViewGroup,
    block_table: torch.Tensor,
    bases: torch.Tensor,
    rows: torch.Tensor,
    num_sampled: torch.Tensor,
) -> None:
    layout = group.layout
    num_words = layout.num_heads * layout.head_words
    block = min(_MAX_BLOCK, triton.next_power_of_2(num_words))
    words = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}
    grid = (rows.shape[0], len(group.views), triton.cdiv(num_words, block))
    _move_rows_kernel[grid](
        group.addresses,
        block_table,
        block_table.stride(0),
        bases,
        rows,
        rows.stride(0),
        num_sampled,
        layout.block_size,
        layout.block_stride,
        layout.slot_stride,
        layout.head_stride,
        layout.word_stride,
        num_words,
        WORD=words[layout.word_bytes],
        HEAD_WORDS=layout.head_words,
        BLOCK=block,
    )


# One program moves one part of a row (its heads, in one layer's keys or values) along
# the whole path of one request, so that the moves of a part happen in order. A path
# descends, so rows[d] >= d and rows[d + 1] > rows[d]: what depth d writes, position
# base + d, lies before every row that a later depth reads. Hence copying at ascending
# depths needs no buffer in between. Positions after the root belong to one request.
@triton.jit(do_not_specialize=["block_table_stride", "rows_stride"])
def _move_rows_kernel(
    addresses_ptr: tl.tensor,  # [num_views]
    block_table_ptr: tl.tensor,  # [num_reqs, max_blocks]
    block_table_stride: tl.tensor,
    bases_ptr: tl.tensor,  # [num_reqs]
    rows_ptr: tl.tensor,  # [num_reqs, max_depth + 1]
    rows_stride: tl.tensor,
    num_sampled_ptr: tl.tensor,  # [num_reqs]
    block_size: tl.tensor,
    block_stride: tl.tensor,
    slot_stride: tl.tensor,
    head_stride: tl.tensor,
    word_stride: tl.tensor,
    num_words: tl.tensor,
    WORD: tl.constexpr,
    HEAD_WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    request = tl.program_id(0)
    word = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    is_word = word < num_words
    address = tl.load(addresses_ptr + tl.program_id(1))
    part = (
        tl.cast(address, tl.pointer_type(WORD))
        + (word // HEAD_WORDS).to(tl.int64) * head_stride
        + (word % HEAD_WORDS) * word_stride
    )
    base = tl.load(bases_ptr + request).to(tl.int64)
    block_table_ptr += request * block_table_stride
    rows_ptr += request * rows_stride
    num_sampled = tl.load(num_sampled_ptr + request)
    for depth in range(1, num_sampled):
        row = tl.load(rows_ptr + depth)
        if row != depth:
            source = base + row
            block = tl.load(block_table_ptr + source // block_size).to(tl.int64)
            slot = block * block_stride + source % block_size * slot_stride
            content = tl.load(part + slot, mask=is_word)
            target = base + depth
            block = tl.load(block_table_ptr + target // block_size).to(tl.int64)
            slot = block * block_stride + target % block_size * slot_stride
            tl.store(part + slot, content, mask=is_word)


def move_rows_reference(
    # [num_blocks, block_size, num_heads, head_size] each, of any strides, all of one
    # block size; no two of them may overlap
    views: Sequence[torch.Tensor],
    # the rest as of `RowMover.move`
    block_table: torch.Tensor,
    bases: torch.Tensor,
    rows: torch.Tensor,
    num_sampled: torch.Tensor,
) -> None:
    """`RowMover.move` in PyTorch: read every row of the paths, then write them all.

    Where nothing moves, the root is written onto itself: no other entry writes there.
    """
    depths = torch.arange(rows.shape[1], device=rows.device)
    is_moved = (depths < num_sampled[:, None]) & (rows != depths)
    # [num_reqs, max_depth + 1] each
    source = bases[:, None] + torch.where(is_moved, rows, 0)
    target = bases[:, None] + torch.where(is_moved, depths, 0)
    for view in views:
        size = view.shape[1]
        source_block = block_table.gather(1, (source // size).long())
        target_block = block_table.gather(1, (target // size).long())
        words = view.view(_INTEGERS[view.element_size()])
        # The right-hand side is a copy.
        words[target_block, target % size] = words[source_block, source % size]
