# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 (a kernel's constants are in upper case)
"""The best tokens of a sharded vocabulary, from the best tokens of each shard."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from vllm.triton_utils import tl, triton

from vllm_medusa.kernels.backend import use_triton


def pack_top_k(
    # [batch, num_heads, n] floating, logits of the shard's best tokens, n <= k
    logits: torch.Tensor,
    # [batch, num_heads, n] int64, below 2**24
    ids: torch.Tensor,
    k: int,
    # [batch, num_heads] floating, logsumexp of all the shard's logits
    totals: torch.Tensor | None = None,
) -> torch.Tensor:
    """One shard's list for `merge_top_k`, in one tensor to be gathered.

    Returns:
        float32 [batch, num_heads, 2 * k], or 2 * k + 1 with `totals`.
    """
    # float32 holds every id exactly.
    parts = [logits.float(), ids.float()]
    if short := k - logits.shape[-1]:
        # The list ends in logits that win against none.
        parts = [
            F.pad(parts[0], (0, short), value=-torch.inf),
            F.pad(parts[1], (0, short)),
        ]
    if totals is not None:
        parts.append(totals.float().unsqueeze(-1))
    return torch.cat(parts, dim=-1)


def merge_top_k(
    # [size, batch, num_heads, 2 * k or 2 * k + 1] float32, contiguous: the lists that
    # `pack_top_k` made of the shards
    packed: torch.Tensor,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best tokens of all shards, best first: logits and ids.

    Lists with totals give log-probabilities in place of logits. Equal logits come in
    the order of the shards, then of their lists: all ranks that merge the same lists
    get the same tokens. NaN counts as the least logit.

    Returns:
        float32 and int64, both [batch, num_heads, k].
    """
    if not use_triton(packed):
        return merge_top_k_reference(packed, k)
    size, batch, num_heads, width = packed.shape
    assert packed.is_contiguous()
    best = packed.new_empty(batch, num_heads, k)
    best_ids = torch.empty_like(best, dtype=torch.int64)
    num_lists = batch * num_heads
    block_size, block_k = triton.next_power_of_2(size), triton.next_power_of_2(k)
    _merge_kernel[(num_lists,)](
        packed,
        num_lists * width,
        best,
        best_ids,
        SIZE=size,
        K=k,
        WIDTH=width,
        BLOCK_SIZE=block_size,
        BLOCK_K=block_k,
        CHUNK=min(16, block_size * block_k),
        num_warps=1 if block_size * block_k <= 64 else 4,
    )
    return best, best_ids


@triton.jit(do_not_specialize=["shard_stride"])
def _merge_kernel(
    packed_ptr: tl.tensor,  # [SIZE, num_lists, WIDTH]
    shard_stride: tl.tensor,
    best_ptr: tl.tensor,  # [num_lists, K], written
    best_ids_ptr: tl.tensor,  # [num_lists, K], written
    SIZE: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,  # at least SIZE
    BLOCK_K: tl.constexpr,  # at least K
    CHUNK: tl.constexpr,  # tokens that all tokens are compared with at once
) -> None:
    request_head = tl.program_id(0)
    packed_ptr += request_head * WIDTH
    order = tl.arange(0, BLOCK_SIZE * BLOCK_K)
    at = order // BLOCK_K * shard_stride + order % BLOCK_K
    is_token = (order // BLOCK_K < SIZE) & (order % BLOCK_K < K)
    logits = tl.load(packed_ptr + at, mask=is_token, other=float("-inf"))
    ids = tl.load(packed_ptr + at + K, mask=is_token, other=0.0)
    logits = tl.where(logits == logits, logits, float("-inf"))

    # A token's place is the number of tokens before it. Padding, which counts as -inf,
    # is before a token only where the first shard's K tokens are, too.
    place = tl.zeros([BLOCK_SIZE * BLOCK_K], dtype=tl.int32)
    for first in range(0, SIZE * BLOCK_K, CHUNK):
        other = first + tl.arange(0, CHUNK)
        other_at = other // BLOCK_K * shard_stride + other % BLOCK_K
        is_other = (other // BLOCK_K < SIZE) & (other % BLOCK_K < K)
        others = tl.load(packed_ptr + other_at, mask=is_other, other=float("-inf"))
        others = tl.where(others == others, others, float("-inf"))[:, None]
        is_earlier = other[:, None] < order[None, :]
        is_before = (others > logits[None, :]) | (
            (others == logits[None, :]) & is_earlier
        )
        place += tl.sum(is_before.to(tl.int32), axis=0)

    if WIDTH > 2 * K:
        shards = tl.arange(0, BLOCK_SIZE)
        totals = tl.load(
            packed_ptr + shards * shard_stride + 2 * K,
            mask=shards < SIZE,
            other=float("-inf"),
        )
        greatest = tl.max(totals, axis=0)
        logits -= greatest + tl.log(tl.sum(tl.exp(totals - greatest), axis=0))
    is_best = is_token & (place < K)
    tl.store(best_ptr + request_head * K + place, logits, mask=is_best)
    tl.store(best_ids_ptr + request_head * K + place, ids.to(tl.int64), mask=is_best)


def merge_top_k_reference(
    # both as of `merge_top_k`
    packed: torch.Tensor,
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`merge_top_k` in PyTorch."""
    packed = packed.permute(1, 2, 0, 3)
    logits = packed[..., :k].flatten(2)
    logits = torch.where(logits.isnan(), -torch.inf, logits)
    # topk does not say which of several equal values it takes.
    best, place = logits.sort(dim=-1, descending=True, stable=True)
    ids = packed[..., k : 2 * k].flatten(2).gather(-1, place[..., :k])
    best = best[..., :k]
    if packed.shape[-1] > 2 * k:
        best = best - packed[..., 2 * k].logsumexp(dim=-1, keepdim=True)
    return best, ids.long()
