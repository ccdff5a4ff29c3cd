# SPDX-License-Identifier: Apache-2.0
"""The prefix part in PyTorch, on any device: what the fast kernels are tested with."""

from __future__ import annotations

import torch

from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.tree_rows import TreeRows


class ReferencePrefix:
    """Request by request, in float32. Reads lengths on the host: not capturable."""

    num_bytes = 0

    def prepare(
        self,
        trees: TreeRows,
        # [num_reqs] int32
        bases: torch.Tensor,
    ) -> None:
        """As `PrefixAttention.prepare`; layers share nothing here."""

    # ([num_tokens, num_heads, head_size] float32, [num_heads, num_tokens] float32)
    def attend(
        self,
        # [num_tokens, num_heads, head_size]
        query: torch.Tensor,
        kv: PagedKV,
        trees: TreeRows,
        # [num_reqs] int32
        bases: torch.Tensor,
        # [num_tokens, num_heads, head_size], not used
        output: torch.Tensor,
        scaling: AttentionScaling,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `PrefixAttention.attend`; what is undefined is NaN."""
        num_tokens, num_heads, _ = query.shape
        attended = query.new_full(query.shape, torch.nan, dtype=torch.float32)
        lse = attended.new_full((num_heads, num_tokens), torch.nan)
        starts = trees.query_start_loc.tolist()
        for request, base in enumerate(bases.tolist()):
            rows = slice(starts[request], starts[request + 1])
            if base == 0 or rows.start == rows.stop:
                continue
            positions = torch.arange(base, device=query.device)
            keys, values = gather(kv, request, positions)
            visible = positions.new_ones(1, base, dtype=torch.bool)
            attended[rows], row_lse = attend_with_lse(
                query[rows], keys, values, visible, scaling
            )
            lse[:, rows] = row_lse.T
        return attended, lse


# ([num_keys, num_kv_heads, head_size] float32, the same)
def gather(
    kv: PagedKV,
    request: int,
    # [num_keys] int64
    positions: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values of some positions of a request, scales applied."""
    blocks = kv.block_table[request, positions // kv.block_size].long()
    slots = positions % kv.block_size
    gathered = []
    for cache, scale in ((kv.keys, kv.key_scale), (kv.values, kv.value_scale)):
        raw = cache.view(torch.uint8) if cache.element_size() == 1 else cache
        lines = raw[blocks, slots].view(cache.dtype).float()
        gathered.append(lines if scale is None else lines * scale)
    return gathered[0], gathered[1]


# ([num_rows, num_heads, head_size] float32, [num_rows, num_heads] float32)
def attend_with_lse(
    # [num_rows, num_heads, head_size]
    query: torch.Tensor,
    # [num_keys, num_kv_heads, head_size] float32
    key: torch.Tensor,
    # [num_keys, num_kv_heads, head_size] float32
    value: torch.Tensor,
    # [num_rows, num_keys] bool, every row sees a key
    visible: torch.Tensor,
    scaling: AttentionScaling,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attended values and the log-sum-exp (natural) of the scores, densely."""
    group = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(group, dim=1)
    value = value.repeat_interleave(group, dim=1)
    scores = torch.einsum("rhd,khd->rhk", query.float(), key) * scaling.scale
    if scaling.soft_cap:
        scores = scaling.soft_cap * torch.tanh(scores / scaling.soft_cap)
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    attended = torch.einsum("rhk,khd->rhd", scores.softmax(dim=-1), value)
    return attended, scores.logsumexp(dim=-1)
