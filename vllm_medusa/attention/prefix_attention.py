# SPDX-License-Identifier: Apache-2.0
"""What a kernel that attends the committed prefix of tree rows has to offer."""

from __future__ import annotations

from typing import Protocol

import torch

from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.tree_rows import TreeRows


class PrefixAttention(Protocol):
    """Attends the positions below each request's base, all of them for every row."""

    @property
    def num_bytes(self) -> int:
        """Device memory of the buffers that it keeps."""

    def prepare(
        self,
        trees: TreeRows,
        # [num_reqs] int32, position of each root; at the same address in every step
        bases: torch.Tensor,
    ) -> None:
        """Do what the layers of a step share; called before its forward pass."""

    # ([num_tokens, num_heads, head_size], [num_heads, num_tokens] float32)
    def attend(
        self,
        # [num_tokens, num_heads, head_size], of the tree rows alone
        query: torch.Tensor,
        kv: PagedKV,
        trees: TreeRows,
        # [num_reqs] int32
        bases: torch.Tensor,
        # [num_tokens, num_heads, head_size], room for the attended values
        output: torch.Tensor,
        scaling: AttentionScaling,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the attended values, which may lie in `output`, and the log-sum-exp
        (natural logarithm) of the scores.

        Both are undefined for rows of padding and of requests with base 0.
        """
