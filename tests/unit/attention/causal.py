# SPDX-License-Identifier: Apache-2.0
"""Plain causal attention, which a chain must reproduce."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.unit.attention.cases import Case


# -> [num_tokens, num_heads, head_size] float32, on the CPU
def causal_attention(case: Case) -> torch.Tensor:
    """Attend each request with PyTorch's own function and no knowledge of trees."""
    starts = case.trees.query_start_loc.tolist()
    attended = []
    for request, length in enumerate(case.trees.seq_lens.tolist()):
        query = case.query[starts[request] : starts[request + 1]].float().cpu()
        slots = torch.arange(length)
        blocks = case.kv.block_table[request].long().cpu()[slots // case.kv.block_size]
        key, value = (
            cache.cpu()[blocks, slots % case.kv.block_size].float().transpose(0, 1)
            for cache in (case.kv.keys, case.kv.values)
        )
        rows = slots[-query.shape[0] :]
        mask = slots[None, :] <= rows[:, None]
        attended.append(
            scaled_dot_product_attention(
                query.transpose(0, 1),
                key,
                value,
                attn_mask=mask,
                scale=case.scaling.scale,
                enable_gqa=True,
            ).transpose(0, 1)
        )
    return torch.cat(attended)
