# SPDX-License-Identifier: Apache-2.0
"""The trees of one step, as attention, verification and the K/V move see them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from vllm_medusa.tree import TokenTree
from vllm_medusa.tree.masks import ancestor_masks


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Tensors that follow from the shape of trees alone; row 0 is the root.

    `parents` [num_layouts, num_rows] int64 (the root's own entry is 0), `depths`
    [num_layouts, num_rows] int64, `ancestors` [num_layouts, num_rows, num_rows] bool:
    row r sees itself and its ancestors. There is one layout for all requests, or one
    for each.
    """

    parents: torch.Tensor
    depths: torch.Tensor
    ancestors: torch.Tensor
    max_depth: int
    is_chain: bool

    @staticmethod
    def of(tree: TokenTree, device: torch.device) -> TreeLayout:
        """Lay `tree`, which all requests share, out on `device`."""
        parents = torch.tensor(((0, *tree.parents[1:]),), dtype=torch.int64)
        depths = torch.tensor((tree.depths,), dtype=torch.int64)
        return TreeLayout(
            parents.to(device),
            depths.to(device),
            tree.ancestor_mask()[None].to(device),
            tree.max_depth,
            tree.is_chain,
        )

    @staticmethod
    def of_parents(
        # [num_trees, num_rows] int64, the root's own entry is 0
        parents: torch.Tensor,
    ) -> TreeLayout:
        """Lay out a tree for each request, on the CPU."""
        ancestors = ancestor_masks(parents)
        depths = ancestors.sum(dim=-1) - 1
        return TreeLayout(parents, depths, ancestors, int(depths.max()), False)


@dataclass(slots=True)
class TreeBatch:
    """The requests of one step that verify a tree, in batch order.

    A request near a limit (token budget, max_model_len) may be granted fewer rows
    than the tree has; its tree is then the first `num_rows` rows. Everything is
    padded to the widest request, `width` rows.
    """

    request_indices: np.ndarray
    """[num_trees] int64, index of each request in the step's batch."""
    row_starts: np.ndarray
    """[num_trees] int64, each root's row among the step's tokens."""
    bases_np: np.ndarray
    """[num_trees] int64, each root's position: its number of computed tokens."""
    num_rows_np: np.ndarray
    """[num_trees] int64, rows in use, root included."""
    num_tokens: int
    """Tokens of the whole step, plain rows included."""
    layout: TreeLayout
    """Of the first `width` rows of the trees."""

    requests: torch.Tensor = field(init=False)
    """[num_trees] int64, `request_indices` on the device."""
    bases: torch.Tensor = field(init=False)
    """[num_trees] int64."""
    num_rows: torch.Tensor = field(init=False)
    """[num_trees] int64."""
    tree_rows: torch.Tensor = field(init=False)
    """[num_trees, width] int64: 0, 1, 2, …. Padding repeats the last row in use, so
    that whatever is computed for it equals what that row gets."""
    token_rows: torch.Tensor = field(init=False)
    """[num_trees, width] int64, place of `tree_rows` among the step's tokens."""

    is_whole_step: bool = field(init=False)
    """Whether the step's tokens are tree rows and nothing else."""
    is_dense: bool = field(init=False)
    """Whether the step's tokens are exactly `[num_trees, width]` in memory."""

    def __post_init__(self) -> None:
        self.is_whole_step = int(self.num_rows_np.sum()) == self.num_tokens
        self.is_dense = (
            self.is_whole_step and self.num_trees * self.width == self.num_tokens
        )
        device = self.layout.depths.device
        rows = np.minimum(np.arange(self.width), self.num_rows_np[:, None] - 1)
        self.tree_rows = torch.from_numpy(rows).to(device)
        self.token_rows = torch.from_numpy(rows + self.row_starts[:, None]).to(device)
        self.requests = torch.from_numpy(self.request_indices).to(device)
        self.bases = torch.from_numpy(self.bases_np).to(device)
        self.num_rows = torch.from_numpy(self.num_rows_np).to(device)

    @property
    def num_trees(self) -> int:
        """Requests that verify a tree."""
        return len(self.request_indices)

    @property
    def width(self) -> int:
        """Rows of the widest tree, root included."""
        return self.layout.depths.shape[1]

    @property
    def longest(self) -> int:
        """Tokens of the longest request, its rows included."""
        return int((self.bases_np + self.num_rows_np).max())

    # [num_trees, width] int64
    def parents(self) -> torch.Tensor:
        """Parent of each row; entries of padding are of no use."""
        return self.layout.parents.expand(self.num_trees, -1)

    # [num_trees, width] int64
    def depths(self) -> torch.Tensor:
        """Depth of each row; entries of padding are of no use."""
        return self.layout.depths.expand(self.num_trees, -1)

    # [num_trees, width] int64
    def row_depths(self) -> torch.Tensor:
        """Depth of each of `tree_rows`."""
        return self.depths().gather(1, self.tree_rows)

    # [num_trees, width, width] bool
    def row_ancestors(self) -> torch.Tensor:
        """Rows that each of `tree_rows` sees."""
        index = self.tree_rows[:, :, None].expand(-1, -1, self.width)
        return self.layout.ancestors.expand(self.num_trees, -1, -1).gather(1, index)

    # [num_trees, width] int64
    def positions(self) -> torch.Tensor:
        """Position of each row: base + depth, whatever its slot."""
        return self.bases[:, None] + self.row_depths()
