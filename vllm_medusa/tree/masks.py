# SPDX-License-Identifier: Apache-2.0
"""Ancestor masks of a batch of trees, on the device that holds their parents."""

from __future__ import annotations

import torch


# [num_trees, num_rows, num_rows] bool
def ancestor_masks(
    # [num_trees, num_rows] int32, parent row of each row, 0 for the root itself
    parents: torch.Tensor,
) -> torch.Tensor:
    """Return which rows each row sees: itself and its ancestors.

    Squaring "row or parent" log2(num_rows) times reaches every ancestor; counts
    stay small enough for float32, since each product is cut to 0 and 1.
    """
    num_rows = parents.shape[1]
    rows = torch.arange(num_rows, device=parents.device)
    reach = (parents[:, :, None] == rows) | (rows[:, None] == rows)
    length = 1
    while length < num_rows - 1:
        steps = reach.float()
        reach = torch.bmm(steps, steps) > 0
        length *= 2
    return reach
