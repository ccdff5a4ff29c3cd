# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 (a kernel's constants are in upper case)
"""Triton kernels of tree attention with a tree per request.

One program attends a tile of rows of one request and one KV head over one part of the
context. The query heads that share a KV head lie side by side in the tile (packed row
= row * group + head of the group), so a key is read once for all of them. Only
the last part also attends the tree's own keys, and only there a mask is loaded. The
reference beside them is `vllm_medusa.attention.reference.tree_attention`; what they
are given is computed in `vllm_medusa.attention.triton_tree`.

Scores are kept in units of log 2, since the hardware's exponential is base 2.
"""

from __future__ import annotations

from vllm.triton_utils import tl, triton


@triton.jit
def _attend_tile(
    attended: tl.tensor,  # [ROWS, PADDED_SIZE] float32, sum of weights * values so far
    peak: tl.tensor,  # [ROWS] float32, largest score so far
    total: tl.tensor,  # [ROWS] float32, sum of weights so far
    query: tl.tensor,  # [ROWS, PADDED_SIZE]
    key_ptr: tl.tensor,  # of this KV head
    value_ptr: tl.tensor,  # of this KV head
    blocks_ptr: tl.tensor,  # this request's row of the block table
    slots: tl.tensor,  # [KEYS] int32, places in the request
    is_key: tl.tensor,  # [KEYS] whether there is anything to read
    visible: tl.tensor,  # [ROWS or 1, KEYS]
    scale: tl.tensor,
    soft_cap: tl.tensor,
    key_stride_block: tl.tensor,
    key_stride_slot: tl.tensor,
    value_stride_block: tl.tensor,
    value_stride_slot: tl.tensor,
    KEY_STRIDE_ELEMENT: tl.constexpr,
    VALUE_STRIDE_ELEMENT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return `attended`, `peak` and `total` after one more tile of keys."""
    elements = tl.arange(0, PADDED_SIZE)
    in_head = elements < HEAD_SIZE
    blocks = tl.load(blocks_ptr + slots // BLOCK_SIZE, mask=is_key, other=0)
    blocks = blocks.to(tl.int64)
    offsets = slots % BLOCK_SIZE
    # [PADDED_SIZE, KEYS]
    keys = tl.load(
        key_ptr
        + (blocks * key_stride_block + offsets * key_stride_slot)[None, :]
        + elements[:, None] * KEY_STRIDE_ELEMENT,
        mask=in_head[:, None] & is_key[None, :],
        other=0.0,
    ).to(query.dtype)
    scores = tl.dot(query, keys, input_precision=PRECISION) * scale
    if HAS_SOFT_CAP:
        # tanh x = 1 - 2 / (exp 2x + 1), which saturates where it overflows.
        scores = soft_cap * (1.0 - 2.0 / (tl.exp(scores * 2.0) + 1.0))
    scores = tl.where(visible, scores * 1.4426950408889634, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    # A row that has seen no key yet: exp2(-inf - -inf) is no number.
    shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores - shift[:, None])
    decay = tl.exp2(peak - shift)
    # [KEYS, PADDED_SIZE]
    values = tl.load(
        value_ptr
        + (blocks * value_stride_block + offsets * value_stride_slot)[:, None]
        + elements[None, :] * VALUE_STRIDE_ELEMENT,
        mask=is_key[:, None] & in_head[None, :],
        other=0.0,
    ).to(query.dtype)
    attended = attended * decay[:, None]
    attended += tl.dot(weights.to(query.dtype), values, input_precision=PRECISION)
    return attended, new_peak, total * decay + tl.sum(weights, axis=1)


# The numbers of tiles and of rows change with the batch: one kernel serves them all.
@triton.jit(do_not_specialize=["num_tiles", "width"])
def attend_rows(
    query_ptr: tl.tensor,  # [num_tokens, num_heads, head_size]
    key_ptr: tl.tensor,  # [num_blocks, block_size, num_kv_heads, head_size]
    value_ptr: tl.tensor,  # [num_blocks, block_size, num_kv_heads, head_size]
    blocks_ptr: tl.tensor,  # [num_reqs, max_blocks] int32
    starts_ptr: tl.tensor,  # [num_reqs + 1] int32
    seq_lens_ptr: tl.tensor,  # [num_reqs] int32
    depths_ptr: tl.tensor,  # [num_reqs, max_width] int32
    ancestors_ptr: tl.tensor,  # [num_reqs, max_width, max_width] bool
    key_scale_ptr: tl.tensor,  # float32, or None
    value_scale_ptr: tl.tensor,  # float32, or None
    output_ptr: tl.tensor,  # [num_tokens, num_heads, head_size], of one part
    partial_ptr: tl.tensor,  # [num_reqs, width, num_heads, num_parts, PADDED_SIZE]
    weight_ptr: tl.tensor,  # [num_reqs, width, num_heads, num_parts]
    scale: tl.tensor,  # divided by soft_cap if there is one
    soft_cap: tl.tensor,
    num_tiles: tl.tensor,  # of rows, per request
    width: tl.tensor,
    num_heads: tl.tensor,
    query_stride_token: tl.tensor,
    query_stride_head: tl.tensor,
    output_stride_token: tl.tensor,
    output_stride_head: tl.tensor,
    key_stride_block: tl.tensor,
    key_stride_slot: tl.tensor,
    key_stride_head: tl.tensor,
    value_stride_block: tl.tensor,
    value_stride_slot: tl.tensor,
    value_stride_head: tl.tensor,
    blocks_stride: tl.tensor,
    depths_stride: tl.tensor,
    ancestors_stride_request: tl.tensor,
    ancestors_stride_row: tl.tensor,
    KEY_STRIDE_ELEMENT: tl.constexpr,
    VALUE_STRIDE_ELEMENT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    SLIDING_WINDOW: tl.constexpr,  # 0: none
    HAS_SOFT_CAP: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    ONE_PART: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Attend one tile of rows; grid (num_reqs * num_tiles, num_kv_heads, num_parts).

    One part writes the output. Of several each writes, in float32, its average of
    values and the base-2 logarithm of its sum of weights, which
    `vllm_medusa.attention.triton_merge.merge_parts` joins.
    """
    request = tl.program_id(0) // num_tiles
    first_packed = (tl.program_id(0) % num_tiles) * ROWS
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    num_parts = tl.num_programs(2)
    first = tl.load(starts_ptr + request)
    num_rows = tl.load(starts_ptr + request + 1) - first
    if first_packed >= num_rows * GROUP:
        return
    # A dry run may claim fewer tokens than it has rows.
    base = tl.maximum(tl.load(seq_lens_ptr + request) - num_rows, 0)

    # [ROWS]
    packed = first_packed + tl.arange(0, ROWS)
    row = packed // GROUP
    head = kv_head * GROUP + packed % GROUP
    is_row = row < num_rows
    token = (first + row).to(tl.int64)
    request_long = request.to(tl.int64)
    # [num_reqs, width, num_heads, num_parts], flat
    place = ((request_long * width + row) * num_heads + head) * num_parts + part

    oldest = 0
    if SLIDING_WINDOW > 0:
        # What the root sees; deeper rows see no older key.
        oldest = tl.maximum(base - SLIDING_WINDOW + 1, 0)
    first_tile = oldest // KEYS
    num_key_tiles = (base + KEYS - 1) // KEYS
    tiles_per_part = (num_key_tiles - first_tile + num_parts - 1) // num_parts
    begin = first_tile + part * tiles_per_part
    end = tl.minimum(begin + tiles_per_part, num_key_tiles)
    if (begin >= end) & (part < num_parts - 1):
        tl.store(weight_ptr + place, float("-inf"), mask=is_row)
        return

    elements = tl.arange(0, PADDED_SIZE)
    row_mask = is_row[:, None] & (elements < HEAD_SIZE)[None, :]
    # [ROWS, PADDED_SIZE]
    query = tl.load(
        query_ptr
        + (token * query_stride_token + head * query_stride_head)[:, None]
        + elements[None, :],
        mask=row_mask,
        other=0.0,
    )
    depth_ptr = depths_ptr + request_long * depths_stride
    row_depth = tl.load(depth_ptr + row, mask=is_row, other=0)
    key_head_ptr = key_ptr + kv_head.to(tl.int64) * key_stride_head
    value_head_ptr = value_ptr + kv_head.to(tl.int64) * value_stride_head
    request_blocks_ptr = blocks_ptr + request_long * blocks_stride
    value_scale = 1.0
    if HAS_SCALES:
        scale = scale * tl.load(key_scale_ptr)
        value_scale = tl.load(value_scale_ptr)

    attended = tl.zeros([ROWS, PADDED_SIZE], dtype=tl.float32)
    peak = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)

    for tile in range(begin, end):
        slots = tile * KEYS + tl.arange(0, KEYS)
        is_key = slots < base
        visible = is_key[None, :]
        if SLIDING_WINDOW > 0:
            distance = (base + row_depth)[:, None] - slots[None, :]
            visible = visible & (distance < SLIDING_WINDOW)
        attended, peak, total = _attend_tile(
            attended,
            peak,
            total,
            query,
            key_head_ptr,
            value_head_ptr,
            request_blocks_ptr,
            slots,
            is_key,
            visible,
            scale,
            soft_cap,
            key_stride_block,
            key_stride_slot,
            value_stride_block,
            value_stride_slot,
            KEY_STRIDE_ELEMENT,
            VALUE_STRIDE_ELEMENT,
            BLOCK_SIZE,
            HEAD_SIZE,
            PADDED_SIZE,
            HAS_SOFT_CAP,
            PRECISION,
        )

    # No row sees a later one, so the tile's last row bounds the keys.
    num_tree_keys = tl.minimum(num_rows, (first_packed + ROWS - 1) // GROUP + 1)
    num_tree_keys = tl.where(part == num_parts - 1, num_tree_keys, 0)
    mask_ptr = ancestors_ptr + request_long * ancestors_stride_request
    for start in range(0, num_tree_keys, KEYS):
        key_row = start + tl.arange(0, KEYS)
        is_key = key_row < num_tree_keys
        visible = tl.load(
            mask_ptr + row[:, None] * ancestors_stride_row + key_row[None, :],
            mask=is_row[:, None] & is_key[None, :],
            other=0,
        )
        visible = visible != 0
        if SLIDING_WINDOW > 0:
            key_depth = tl.load(depth_ptr + key_row, mask=is_key, other=0)
            distance = row_depth[:, None] - key_depth[None, :]
            visible = visible & (distance < SLIDING_WINDOW)
        attended, peak, total = _attend_tile(
            attended,
            peak,
            total,
            query,
            key_head_ptr,
            value_head_ptr,
            request_blocks_ptr,
            base + key_row,
            is_key,
            visible,
            scale,
            soft_cap,
            key_stride_block,
            key_stride_slot,
            value_stride_block,
            value_stride_slot,
            KEY_STRIDE_ELEMENT,
            VALUE_STRIDE_ELEMENT,
            BLOCK_SIZE,
            HEAD_SIZE,
            PADDED_SIZE,
            HAS_SOFT_CAP,
            PRECISION,
        )

    # Rows of padding, and rows whose window begins behind this part, saw nothing.
    saw_nothing = total == 0.0
    attended = attended * (value_scale / tl.where(saw_nothing, 1.0, total))[:, None]
    if ONE_PART:
        tl.store(
            output_ptr
            + (token * output_stride_token + head * output_stride_head)[:, None]
            + elements[None, :],
            attended,
            mask=row_mask,
        )
    else:
        weight = peak + tl.log2(tl.where(saw_nothing, 1.0, total))
        tl.store(weight_ptr + place, weight, mask=is_row)
        tl.store(
            partial_ptr + place[:, None] * PADDED_SIZE + elements[None, :],
            attended,
            mask=row_mask,
        )
