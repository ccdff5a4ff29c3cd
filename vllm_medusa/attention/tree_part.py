# SPDX-License-Identifier: Apache-2.0
"""The rows of a tree among themselves, merged with what they saw of the prefix."""

from __future__ import annotations

import torch
from vllm.triton_utils import tl, triton

from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.prefix_reference import attend_with_lse, gather
from vllm_medusa.attention.tree_part_kernel import tree_part_kernel
from vllm_medusa.attention.tree_rows import TreeRows

# Programs that fill a large GPU about once; fewer are split into smaller blocks.
_ENOUGH_PROGRAMS = 256
_SMALLEST_BLOCK = 16
_LARGEST_BLOCK = 64
_NUMBERS_OF_FOUR_WARPS = 64 * 64


def attend_tree_part(
    # [num_tokens, num_heads, head_size]; 8-bit if the layer quantises its queries
    query: torch.Tensor,
    kv: PagedKV,
    trees: TreeRows,
    # [num_reqs] int32, position of each root, at least 0
    bases: torch.Tensor,
    # [num_tokens, num_heads, head_size], attended values of the prefix alone
    prefix_output: torch.Tensor,
    # [num_heads, num_tokens] float32, natural logarithm
    prefix_lse: torch.Tensor,
    # [num_tokens, num_heads, head_size], written; may be `prefix_output` itself
    output: torch.Tensor,
    scaling: AttentionScaling,
) -> None:
    """Attend each row's ancestors and itself, and merge with the prefix: one launch.

    Keys and values come from the cache, so that a quantised cache and layers that
    share another layer's cache give what a later step will read. Parents stand before
    their children. Where a request has no prefix (base 0) its entries of
    `prefix_output` and `prefix_lse` are not used: kernels disagree on what to write
    there. Rows of padding are left as they are.
    """
    num_heads, head_size = query.shape[1:]
    num_kv_heads = kv.keys.shape[2]
    group = num_heads // num_kv_heads
    lines = trees.width * group
    head_block = max(_SMALLEST_BLOCK, triton.next_power_of_2(head_size))
    # Blocks of queries, keys and values share an L4's 99 KiB.
    is_long = head_block * output.element_size() > 256
    largest = _LARGEST_BLOCK // 2 if is_long else _LARGEST_BLOCK
    block_m = _block_of_lines(lines, trees.num_reqs * num_kv_heads, largest)
    block_n = min(
        _LARGEST_BLOCK if head_block <= 64 else _LARGEST_BLOCK // 2,
        max(_SMALLEST_BLOCK, triton.next_power_of_2(trees.width)),
    )
    grid = (trees.num_reqs, num_kv_heads, triton.cdiv(lines, block_m))
    tree_part_kernel[grid](
        query,
        *query.stride()[:2],
        kv.keys,
        *kv.keys.stride(),
        kv.values,
        *kv.values.stride(),
        kv.block_table,
        kv.block_table.stride(0),
        kv.key_scale,
        kv.value_scale,
        trees.query_start_loc,
        bases,
        trees.ancestors,
        *trees.ancestors.stride(),
        prefix_output,
        *prefix_output.stride(),
        prefix_lse,
        *prefix_lse.stride(),
        output,
        *output.stride()[:2],
        scaling.scale,
        scaling.soft_cap,
        number=_multiplied_as(output.dtype),
        has_soft_cap=scaling.soft_cap != 0.0,
        is_quantised=kv.key_scale is not None,
        group=group,
        head_size=head_size,
        head_block=head_block,
        page_size=kv.block_size,
        block_m=block_m,
        block_n=block_n,
        # Of one warp, the queries and their sums must fit its registers.
        num_warps=8 if block_m * head_block > _NUMBERS_OF_FOUR_WARPS else 4,
    )


def _block_of_lines(lines: int, num_programs: int, largest: int) -> int:
    """Return how many of `lines` queries of one KV head a program takes."""
    block = min(largest, max(_SMALLEST_BLOCK, triton.next_power_of_2(lines)))
    while (
        block > _SMALLEST_BLOCK
        and num_programs * triton.cdiv(lines, block) < _ENOUGH_PROGRAMS
    ):
        block //= 2
    return block


def _multiplied_as(dtype: torch.dtype) -> tl.dtype:
    """Return the Triton type that keys and values are multiplied in: the model's."""
    is_compiled = isinstance(tree_part_kernel, triton.JITFunction)
    if is_compiled and dtype != torch.float32:
        return tl.bfloat16 if dtype == torch.bfloat16 else tl.float16
    # Triton's interpreter multiplies numbers of bfloat16 as if they were integers.
    return tl.float32


def attend_tree_part_reference(
    # [num_tokens, num_heads, head_size]
    query: torch.Tensor,
    kv: PagedKV,
    trees: TreeRows,
    # [num_reqs] int32
    bases: torch.Tensor,
    # [num_tokens, num_heads, head_size]
    prefix_output: torch.Tensor,
    # [num_heads, num_tokens] float32
    prefix_lse: torch.Tensor,
    # [num_tokens, num_heads, head_size], written
    output: torch.Tensor,
    scaling: AttentionScaling,
) -> None:
    """The same in PyTorch, request by request; reads numbers of the device."""
    starts = trees.query_start_loc.tolist()
    for request, base in enumerate(bases.tolist()):
        rows = slice(starts[request], starts[request + 1])
        num_rows = rows.stop - rows.start
        if num_rows == 0:
            continue
        positions = torch.arange(base, base + num_rows, device=query.device)
        keys, values = gather(kv, request, positions)
        ancestors = trees.ancestors[request, :num_rows, :num_rows]
        own, own_lse = attend_with_lse(query[rows], keys, values, ancestors, scaling)
        if base == 0:
            output[rows] = own.to(output.dtype)
            continue
        # [num_rows, num_heads, 1]: the share of the tree in the whole softmax
        share = (own_lse - prefix_lse[:, rows].T).sigmoid()[:, :, None]
        prefix = prefix_output[rows].float()
        output[rows] = (prefix + share * (own - prefix)).to(output.dtype)
