# SPDX-License-Identifier: Apache-2.0
"""Rows move in the blocks that the layers' caches are viewed in."""

from __future__ import annotations

import torch
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.worker.utils import AttentionGroup

from vllm_medusa.runner.v2.model_runner import kernel_block_tables

SPEC = FullAttentionSpec(
    block_size=32, num_kv_heads=2, head_size=16, dtype=torch.float32
)


def group(kv_cache_group: int, kernel_block_size: int | None) -> AttentionGroup:
    """An attention group whose backend may take smaller blocks than 32 tokens."""
    made = AttentionGroup(
        TritonAttentionBackend, ["layer"], SPEC, kv_cache_group, kernel_block_size
    )
    if kernel_block_size is not None:
        per_block = SPEC.block_size // kernel_block_size
        made.kernel_block_table = torch.zeros(1, 4, 3 * per_block, dtype=torch.int32)
        made.kernel_block_offsets = torch.arange(per_block, dtype=torch.int32)
    return made


def test_tables_of_smaller_blocks() -> None:
    """Three groups of attention in two of the KV cache; one splits its blocks."""
    tables = [torch.tensor([[5, 2, 0]]).int(), torch.tensor([[7, 1, 3]]).int()]
    groups = [[group(0, 16)], [group(1, None), group(1, 32 // 4)]]
    split, whole, quartered = kernel_block_tables(groups, tables)
    assert split.tolist() == [[10, 11, 4, 5, 0, 1]]
    assert whole is tables[1]
    assert quartered.tolist() == [[28, 29, 30, 31, 4, 5, 6, 7, 12, 13, 14, 15]]
