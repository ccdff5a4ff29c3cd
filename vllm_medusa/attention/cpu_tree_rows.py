# SPDX-License-Identifier: Apache-2.0
"""The tree rows of a step as the PyTorch kernel on the CPU takes them."""

from __future__ import annotations

import torch

from vllm_medusa.attention.tree_rows import TreeRows


class CpuTreeRows:
    """`TreeRows` on a CPU, where the host may read every number.

    Padded to the widest request, as `TreeBatch` is: padding repeats the last row in
    use. Requests of padding are left out.

    Attributes:
        num_trees: requests with rows.
        width: rows of the widest.
        num_tokens: rows of all.
        longest: tokens of the longest request, its rows included.
        is_dense: whether `query` is exactly [num_trees, width] in memory.
        requests: [num_trees] int64, their indices.
        bases: [num_trees] int64, position of each root.
        num_rows: [num_trees] int64.
        token_rows: [num_trees, width] int64, where each row stands in `query`.
    """

    def __init__(self, rows: TreeRows) -> None:
        starts = rows.query_start_loc.long()
        counts = starts.diff()
        self.requests = counts.nonzero().flatten()
        self.num_rows = counts[self.requests]
        seq_lens = rows.seq_lens.long()[self.requests]
        self.bases = seq_lens - self.num_rows
        self.num_trees = len(self.requests)
        self.width = int(self.num_rows.max())
        self.num_tokens = int(self.num_rows.sum())
        self.longest = int(seq_lens.max())
        self.is_dense = (
            rows.is_whole_step and self.num_trees * self.width == rows.num_tokens
        )
        # [num_trees, width] int64
        self._rows = torch.minimum(torch.arange(self.width), self.num_rows[:, None] - 1)
        self.token_rows = starts[self.requests, None] + self._rows
        self._depths = rows.depths[self.requests].long()
        self._ancestors = rows.ancestors[self.requests, :, : self.width]

    # [num_trees, width] int64
    def row_depths(self) -> torch.Tensor:
        """As `TreeBatch.row_depths`."""
        return self._depths.gather(1, self._rows)

    # [num_trees, width, width] bool
    def row_ancestors(self) -> torch.Tensor:
        """As `TreeBatch.row_ancestors`."""
        index = self._rows[:, :, None].expand(-1, -1, self.width)
        return self._ancestors.gather(1, index)
