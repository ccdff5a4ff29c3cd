# SPDX-License-Identifier: Apache-2.0
"""An implementation in two parts as the cases know implementations."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_medusa.attention.cascade import CascadeTreeAttention
from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.tree_rows import TreeRows


@dataclass(frozen=True, slots=True)
class Prepared:
    """Prepares each step, as the metadata builders do, before it attends."""

    attention: CascadeTreeAttention
    name: str = "prepared"

    def attend(
        self,
        query: torch.Tensor,
        kv: PagedKV,
        trees: TreeRows,
        output: torch.Tensor,
        scaling: AttentionScaling,
    ) -> None:
        self.attention.prepare(trees)
        self.attention.attend(query, kv, trees, output, scaling)
