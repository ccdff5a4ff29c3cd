# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 (a kernel's constants are in upper case)
"""Exact verification of a batch of trees whose rows lie one after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from vllm.triton_utils import tl, triton

from vllm_medusa.kernels.backend import use_triton
from vllm_medusa.verify import PLACEHOLDER


@dataclass(frozen=True, slots=True)
class Walk:
    """What one step emits, per request."""

    tokens: torch.Tensor
    """[num_reqs, max_depth + 1] int64: accepted tokens, bonus token, `PLACEHOLDER`."""
    rows: torch.Tensor
    """[num_reqs, max_depth + 1] int32, the tree rows walked: root (0), accepted nodes,
    then repeats of the last one."""
    num_sampled: torch.Tensor
    """[num_reqs] int32, accepted nodes + 1."""


def walk_trees(
    # [num_logits] int32 or int64, the input token of each row; a negative one is
    # never accepted, a root's own entry is never read
    row_tokens: torch.Tensor,
    # [num_logits] int64, one draw from the target distribution per row
    drawn: torch.Tensor,
    # [num_reqs, max_width] int32, parent row of each row, the root's own entry is 0;
    # any strides, so one tree of all requests may be expanded
    parents: torch.Tensor,
    # [num_reqs + 1] int32; request i has the rows cu_num_logits[i] up to
    # cu_num_logits[i + 1] of `drawn`, 1 .. max_width of them (1: no tree)
    cu_num_logits: torch.Tensor,
    max_depth: int,
) -> Walk:
    """Walk from each root to the child that equals the draw, as long as one does.

    This is `vllm_medusa.verify.verify_exact` (SpecInfer, arXiv 2305.09781, section
    4.3), one request per program. Of equal siblings the first is taken. `max_depth`
    is at least the depth of the deepest tree.
    """
    if not use_triton(drawn):
        return walk_trees_reference(
            row_tokens, drawn, parents, cu_num_logits, max_depth
        )
    num_reqs, width = parents.shape
    tokens = drawn.new_empty(num_reqs, max_depth + 1)
    rows = cu_num_logits.new_empty(num_reqs, max_depth + 1)
    num_sampled = cu_num_logits.new_empty(num_reqs)
    block = triton.next_power_of_2(width)
    _walk_kernel[(num_reqs,)](
        row_tokens,
        drawn,
        parents,
        *parents.stride(),
        cu_num_logits,
        max_depth,
        tokens,
        rows,
        num_sampled,
        PLACEHOLDER=PLACEHOLDER,
        BLOCK=block,
        num_warps=1 if block <= 128 else 4,
    )
    return Walk(tokens, rows, num_sampled)


# Sizes that change from step to step must not compile the kernel anew.
@triton.jit(
    do_not_specialize=["parents_request_stride", "parents_row_stride", "max_depth"]
)
def _walk_kernel(
    row_tokens_ptr: tl.tensor,  # [num_logits]
    drawn_ptr: tl.tensor,  # [num_logits]
    parents_ptr: tl.tensor,  # [num_reqs, max_width]
    parents_request_stride: tl.tensor,
    parents_row_stride: tl.tensor,
    cu_num_logits_ptr: tl.tensor,  # [num_reqs + 1]
    max_depth: tl.tensor,
    tokens_ptr: tl.tensor,  # [num_reqs, max_depth + 1], written
    rows_ptr: tl.tensor,  # [num_reqs, max_depth + 1], written
    num_sampled_ptr: tl.tensor,  # [num_reqs], written
    PLACEHOLDER: tl.constexpr,
    BLOCK: tl.constexpr,  # at least max_width
) -> None:
    request = tl.program_id(0)
    first = tl.load(cu_num_logits_ptr + request)
    num_rows = tl.load(cu_num_logits_ptr + request + 1) - first
    row_ids = tl.arange(0, BLOCK)
    is_node = (row_ids > 0) & (row_ids < num_rows)
    token = tl.load(row_tokens_ptr + first + row_ids, mask=is_node, other=-1)
    parent = tl.load(
        parents_ptr + request * parents_request_stride + row_ids * parents_row_stride,
        mask=is_node,
        other=-1,
    )
    # Nobody's child: the root, padding, and tokens that may not be accepted.
    parent = tl.where(token >= 0, parent, -1)

    output = request * (max_depth + 1)
    row = 0
    num_sampled = 1
    for depth in range(max_depth + 1):
        draw = tl.load(drawn_ptr + first + row)
        # Once the walk has ended, row and draw repeat, and again no child is found.
        tl.store(
            tokens_ptr + output + depth,
            tl.where(depth < num_sampled, draw, PLACEHOLDER),
        )
        tl.store(rows_ptr + output + depth, row)
        is_child = (parent == row) & (token.to(tl.int64) == draw)
        child = tl.min(tl.where(is_child, row_ids, BLOCK), axis=0)
        is_accepted = (child < BLOCK) & (depth < max_depth)
        row = tl.where(is_accepted, child, row)
        num_sampled += is_accepted.to(tl.int32)
    tl.store(num_sampled_ptr + request, num_sampled)


def walk_trees_reference(
    # all as of `walk_trees`
    row_tokens: torch.Tensor,
    drawn: torch.Tensor,
    parents: torch.Tensor,
    cu_num_logits: torch.Tensor,
    max_depth: int,
) -> Walk:
    """`walk_trees` in PyTorch, on trees padded to the same number of rows."""
    width = parents.shape[1]
    row_ids = torch.arange(width, device=drawn.device)
    first, num_rows = cu_num_logits[:-1, None], cu_num_logits.diff()[:, None]
    flat = (first + row_ids).clamp(max=drawn.shape[0] - 1)
    # [num_reqs, max_width] each
    draws, tokens = drawn[flat], row_tokens[flat]
    is_node = (row_ids > 0) & (row_ids < num_rows) & (tokens >= 0)

    row = torch.zeros_like(first, dtype=torch.int64)
    num_sampled = torch.ones_like(first)
    emitted, rows = [], []
    for depth in range(max_depth + 1):
        draw = draws.gather(1, row)
        emitted.append(torch.where(depth < num_sampled, draw, PLACEHOLDER))
        rows.append(row)
        is_child = is_node & (parents == row) & (tokens == draw)
        child = torch.where(is_child, row_ids, width).amin(1, keepdim=True)
        is_accepted = (child < width) & (depth < max_depth)
        row = torch.where(is_accepted, child, row)
        num_sampled = num_sampled + is_accepted
    return Walk(
        torch.cat(emitted, dim=1),
        torch.cat(rows, dim=1).int(),
        num_sampled[:, 0].int(),
    )
