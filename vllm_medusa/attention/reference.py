# SPDX-License-Identifier: Apache-2.0
"""Tree attention as it is defined, for one request and without a paged cache.

Every implementation is tested against this.
"""

from __future__ import annotations

import torch


def visible_keys(
    # [num_rows, num_rows] bool, row r sees itself and its ancestors
    ancestors: torch.Tensor,
    # [num_rows] int64
    depths: torch.Tensor,
    base: int,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """Return the mask [num_rows, base + num_rows] of keys that each row sees.

    Key columns 0 .. base - 1 are the committed prefix, column base + r is row r.
    A window of w lets a row at position p see the positions p - w + 1 .. p.
    """
    num_rows = depths.shape[0]
    prefix = torch.ones(num_rows, base, dtype=torch.bool, device=depths.device)
    mask = torch.cat([prefix, ancestors], dim=1)
    if sliding_window is not None:
        positions = base + depths
        key_positions = torch.cat([torch.arange(base, device=depths.device), positions])
        mask &= key_positions[None, :] > positions[:, None] - sliding_window
    return mask


def tree_attention(
    # [num_rows, num_heads, head_size]
    query: torch.Tensor,
    # [base + num_rows, num_kv_heads, head_size]
    key: torch.Tensor,
    # [base + num_rows, num_kv_heads, head_size]
    value: torch.Tensor,
    # [num_rows, num_rows] bool
    ancestors: torch.Tensor,
    # [num_rows] int64
    depths: torch.Tensor,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float = 0.0,
) -> torch.Tensor:
    """Return [num_rows, num_heads, head_size] float32, computed in float32."""
    group = query.shape[1] // key.shape[1]
    base = key.shape[0] - query.shape[0]
    key = key.float().repeat_interleave(group, dim=1)
    value = value.float().repeat_interleave(group, dim=1)
    scores = torch.einsum("rhd,khd->hrk", query.float(), key) * scale
    if soft_cap:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    mask = visible_keys(ancestors, depths, base, sliding_window)
    scores = scores.masked_fill(~mask, float("-inf"))
    return torch.einsum("hrk,khd->rhd", scores.softmax(dim=-1), value)
