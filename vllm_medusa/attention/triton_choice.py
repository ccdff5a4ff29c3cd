# SPDX-License-Identifier: Apache-2.0
"""Which Triton kernel attends a batch."""

from __future__ import annotations

import torch

from vllm_medusa.attention.interface import TreeAttention
from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.tree_rows import TreeRows
from vllm_medusa.attention.triton_tree import TritonTreeAttention
from vllm_medusa.attention.triton_unified import UnifiedTreeAttention


def triton_tree_attention(
    device: torch.device,
    max_head_size: int,
    # [max_width, max_width] bool
    fixed_ancestors: torch.Tensor | None = None,
) -> TreeAttention:
    """Return the implementation `triton` of tree attention.

    Args:
        device: where queries and caches lie.
        max_head_size: of all layers.
        fixed_ancestors: the tree (row r sees itself and its ancestors) if every
            request of every batch verifies it or its first rows; None if trees differ.
    """
    any_tree = TritonTreeAttention(device, max_head_size)
    if fixed_ancestors is None:
        return any_tree
    return FixedTreeAttention(UnifiedTreeAttention(fixed_ancestors), any_tree)


class FixedTreeAttention:
    """One fixed tree: vLLM's kernel where it is right and fills the device.

    It does not split a context over programs when requests have more than a few rows
    (in vLLM 0.32 more than one, in 0.33 more than eight), counts sliding windows in
    slots, and rounds float32 products to tf32: all that goes to our own kernel.
    """

    name = "triton"

    def __init__(
        self, unified: UnifiedTreeAttention, any_tree: TritonTreeAttention
    ) -> None:
        self._unified = unified
        self._any_tree = any_tree

    @property
    def num_bytes(self) -> int:
        """As `TreeAttention.num_bytes`."""
        return self._unified.num_bytes + self._any_tree.num_bytes

    def attend(
        self,
        # [num_tokens, num_heads, head_size], of the tree rows alone
        query: torch.Tensor,
        kv: PagedKV,
        trees: TreeRows,
        # [num_tokens, num_heads, head_size], written
        output: torch.Tensor,
        scaling: AttentionScaling,
    ) -> None:
        """As `TreeAttention.attend`."""
        is_right = scaling.sliding_window is None and query.dtype != torch.float32
        if is_right and self._any_tree.num_parts(query, kv, trees) == 1:
            self._unified.attend(query, kv, trees, output, scaling)
        else:
            self._any_tree.attend(query, kv, trees, output, scaling)
