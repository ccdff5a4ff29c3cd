# SPDX-License-Identifier: Apache-2.0
"""What an implementation of tree attention on a device has to offer."""

from __future__ import annotations

from typing import Protocol

import torch

from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.tree_rows import TreeRows


class TreeAttention(Protocol):
    """Attends the tree rows of a step; capturable in a CUDA graph.

    Equal to `vllm_medusa.attention.reference.tree_attention` for each request.
    """

    name: str

    @property
    def num_bytes(self) -> int:
        """Device memory of the buffers that it keeps."""

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
        """Write the attended values of every tree row; padding is left as it is."""
