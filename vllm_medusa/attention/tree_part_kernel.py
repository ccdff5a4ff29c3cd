# SPDX-License-Identifier: Apache-2.0
"""The kernel of `vllm_medusa.attention.tree_part`, whose reference stands there."""

from __future__ import annotations

from vllm.triton_utils import tl, triton


# The stride over heads of the LSE is the number of tokens: one kernel for all.
@triton.jit(do_not_specialize=["lse_head_stride", "block_table_stride"])
def tree_part_kernel(
    query_ptr: tl.tensor,  # [num_tokens, num_heads, head_size]
    query_token_stride: tl.tensor,
    query_head_stride: tl.tensor,
    keys_ptr: tl.tensor,  # [num_blocks, block_size, num_kv_heads, head_size]
    key_block_stride: tl.tensor,
    key_slot_stride: tl.tensor,
    key_head_stride: tl.tensor,
    key_element_stride: tl.tensor,
    values_ptr: tl.tensor,  # as keys
    value_block_stride: tl.tensor,
    value_slot_stride: tl.tensor,
    value_head_stride: tl.tensor,
    value_element_stride: tl.tensor,
    block_table_ptr: tl.tensor,  # [num_reqs, max_blocks]
    block_table_stride: tl.tensor,
    key_scale_ptr: tl.tensor,  # [] float32 or None
    value_scale_ptr: tl.tensor,  # [] float32 or None
    query_start_loc_ptr: tl.tensor,  # [num_reqs + 1]
    bases_ptr: tl.tensor,  # [num_reqs]
    ancestors_ptr: tl.tensor,  # [num_reqs, max_width, max_width]
    ancestors_request_stride: tl.tensor,
    ancestors_row_stride: tl.tensor,
    ancestors_key_stride: tl.tensor,
    prefix_output_ptr: tl.tensor,  # [num_tokens, num_heads, head_size]
    prefix_token_stride: tl.tensor,
    prefix_head_stride: tl.tensor,
    prefix_element_stride: tl.tensor,
    prefix_lse_ptr: tl.tensor,  # [num_heads, num_tokens]
    lse_head_stride: tl.tensor,
    lse_token_stride: tl.tensor,
    output_ptr: tl.tensor,  # [num_tokens, num_heads, head_size]
    output_token_stride: tl.tensor,
    output_head_stride: tl.tensor,
    scale: tl.tensor,
    soft_cap: tl.tensor,
    number: tl.constexpr,
    has_soft_cap: tl.constexpr,
    is_quantised: tl.constexpr,
    group: tl.constexpr,
    head_size: tl.constexpr,
    head_block: tl.constexpr,
    page_size: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
) -> None:
    """One request, one KV head, block_m of its queries: line = row * group + member."""
    # What is exponentiated is so with base 2.
    log2_e: tl.constexpr = 1.4426950408889634
    request = tl.program_id(0)
    kv_head = tl.program_id(1)
    first_line = tl.program_id(2) * block_m
    first_token = tl.load(query_start_loc_ptr + request)
    num_rows = tl.load(query_start_loc_ptr + request + 1) - first_token
    if first_line >= num_rows * group:
        return
    base = tl.load(bases_ptr + request)
    # A cache may be laid out head by head: all blocks of one, then of the next.
    kv_head_long = kv_head.to(tl.int64)
    line = first_line + tl.arange(0, block_m)
    row = line // group
    is_row = row < num_rows
    token = (first_token + row).to(tl.int64)
    head = kv_head * group + line % group
    element = tl.arange(0, head_block)
    is_element = element < head_size
    inside = is_row[:, None] & is_element[None, :]
    queries = tl.load(
        query_ptr
        + token[:, None] * query_token_stride
        + head[:, None] * query_head_stride
        + element[None, :],
        mask=inside,
        other=0.0,
    ).to(number)
    factor = scale
    value_factor = 1.0
    if is_quantised:
        factor = scale * tl.load(key_scale_ptr)
        value_factor = tl.load(value_scale_ptr)

    # The softmax starts as one that has already seen the prefix: its values are
    # divided by their sum, which is therefore 1 where the maximum is the LSE.
    has_prefix = is_row & (base > 0)
    highest = tl.load(
        prefix_lse_ptr + head * lse_head_stride + token * lse_token_stride,
        mask=has_prefix,
        other=float("-inf"),
    )
    highest = highest.to(tl.float32) * log2_e
    total = tl.where(has_prefix, 1.0, 0.0)
    attended = tl.load(
        prefix_output_ptr
        + token[:, None] * prefix_token_stride
        + head[:, None] * prefix_head_stride
        + element[None, :] * prefix_element_stride,
        mask=has_prefix[:, None] & is_element[None, :],
        other=0.0,
    ).to(tl.float32)

    # No row sees a later one.
    last_row = tl.minimum(num_rows, (first_line + block_m - 1) // group + 1)
    for first_key in range(0, last_row, block_n):
        key_row = first_key + tl.arange(0, block_n)
        is_key = key_row < last_row
        position = base + key_row
        block = tl.load(
            block_table_ptr
            + request.to(tl.int64) * block_table_stride
            + position // page_size,
            mask=is_key,
            other=0,
        ).to(tl.int64)
        slot = position % page_size
        key = tl.load(
            keys_ptr
            + block[None, :] * key_block_stride
            + slot[None, :] * key_slot_stride
            + kv_head_long * key_head_stride
            + element[:, None] * key_element_stride,
            mask=is_element[:, None] & is_key[None, :],
            other=0.0,
        ).to(number)
        value = tl.load(
            values_ptr
            + block[:, None] * value_block_stride
            + slot[:, None] * value_slot_stride
            + kv_head_long * value_head_stride
            + element[None, :] * value_element_stride,
            mask=is_key[:, None] & is_element[None, :],
            other=0.0,
        ).to(number)
        scores = tl.dot(queries, key, input_precision="ieee") * factor
        if has_soft_cap:
            # tanh(x) = 1 - 2 / (exp(2 x) + 1), right where the power overflows too.
            power = tl.exp2(scores * (2.0 * log2_e / soft_cap))
            scores = soft_cap * (1.0 - 2.0 / (power + 1.0))
        visible = tl.load(
            ancestors_ptr
            + request.to(tl.int64) * ancestors_request_stride
            + row[:, None] * ancestors_row_stride
            + key_row[None, :] * ancestors_key_stride,
            mask=is_row[:, None] & is_key[None, :],
            other=0,
        )
        scores = tl.where(visible != 0, scores * log2_e, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        # Nothing seen so far: any finite number keeps the differences at -inf.
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - finite[:, None])
        decay = tl.exp2(highest - finite)
        total = total * decay + tl.sum(weights, axis=1)
        attended = attended * decay[:, None] + value_factor * tl.dot(
            weights.to(number), value, input_precision="ieee"
        )
        highest = higher

    attended = attended / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        output_ptr
        + token[:, None] * output_token_stride
        + head[:, None] * output_head_stride
        + element[None, :],
        attended.to(output_ptr.dtype.element_ty),
        mask=inside,
    )
