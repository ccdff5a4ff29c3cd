# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 (a kernel's constants are in upper case)
"""The Triton kernel that joins the parts into which a context was split."""

from __future__ import annotations

from vllm.triton_utils import tl, triton


@triton.jit(do_not_specialize=["width"])
def merge_parts(
    partial_ptr: tl.tensor,  # [num_reqs, width, num_heads, PARTS, PADDED_SIZE]
    weight_ptr: tl.tensor,  # [num_reqs, width, num_heads, PARTS], base-2 logarithms
    starts_ptr: tl.tensor,  # [num_reqs + 1] int32
    output_ptr: tl.tensor,  # [num_tokens, num_heads, head_size], written
    width: tl.tensor,
    num_heads: tl.tensor,
    output_stride_token: tl.tensor,
    output_stride_head: tl.tensor,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    """Average the parts of one row and head; grid (num_reqs * width, num_heads)."""
    request = tl.program_id(0) // width
    row = tl.program_id(0) % width
    head = tl.program_id(1)
    first = tl.load(starts_ptr + request)
    if row >= tl.load(starts_ptr + request + 1) - first:
        return
    place = (tl.program_id(0).to(tl.int64) * num_heads + head) * PARTS
    place = place + tl.arange(0, PARTS)
    weights = tl.load(weight_ptr + place)
    # Every row sees its own key, so one part at least has a weight.
    weights = tl.exp2(weights - tl.max(weights, axis=0))
    elements = tl.arange(0, PADDED_SIZE)
    in_head = elements < HEAD_SIZE
    # A part without keys has written no values.
    parts = tl.load(
        partial_ptr + place[:, None] * PADDED_SIZE + elements[None, :],
        mask=(weights > 0.0)[:, None] & in_head[None, :],
        other=0.0,
    )
    merged = tl.sum(parts * weights[:, None], axis=0) / tl.sum(weights, axis=0)
    token = (first + row).to(tl.int64)
    tl.store(
        output_ptr + token * output_stride_token + head * output_stride_head + elements,
        merged,
        mask=in_head,
    )
