# SPDX-License-Identifier: Apache-2.0
"""One layer's paged keys and values, whatever order they lie in."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PagedKV:
    """Strided views of a layer's KV cache; the memory layout is in the strides.

    A quantised cache holds `key / key_scale`, so scores are multiplied by
    `key_scale` and outputs by `value_scale` (float32 scalars on the device).
    """

    keys: torch.Tensor
    """[num_blocks, block_size, num_kv_heads, head_size]."""
    values: torch.Tensor
    """[num_blocks, block_size, num_kv_heads, head_size]."""
    block_table: torch.Tensor
    """[num_reqs, max_blocks] int32."""
    key_scale: torch.Tensor | None = None
    value_scale: torch.Tensor | None = None

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.keys.shape[1]


@dataclass(frozen=True, slots=True)
class AttentionScaling:
    """What a layer does to its scores, besides the mask.

    `scale` multiplies the products of queries and keys; `sliding_window` w lets a row
    at position p see the positions p - w + 1 .. p, None all; `soft_cap` c replaces a
    score s by c * tanh(s / c), 0 leaves it.
    """

    scale: float
    sliding_window: int | None = None
    soft_cap: float = 0.0
