# SPDX-License-Identifier: Apache-2.0
"""Layouts of the trees of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vllm_medusa.attention.tree_batch import TreeLayout
from vllm_medusa.runner.v1.drafts import Drafts
from vllm_medusa.tree import TokenTree


class Layouts:
    """Makes layouts; those of a tree that all requests share are made once."""

    def __init__(self, tree: TokenTree, has_fixed_tree: bool) -> None:
        """`tree` is the proposer's; requests have its first nodes if it is fixed."""
        self.tree = tree
        self.has_fixed_tree = has_fixed_tree
        self._parents = torch.tensor((0, *tree.parents[1:]))
        self._layouts: dict[int, TreeLayout] = {}

    def of(
        self,
        # [num_trees] int64, rows in use, root included
        num_rows: np.ndarray,
        drafts: Sequence[Drafts],
    ) -> TreeLayout:
        """Return the layout of the trees of some requests, cut to `num_rows`."""
        width = int(num_rows.max())
        if not self.has_fixed_tree:
            parents = torch.zeros(len(num_rows), width, dtype=torch.int64)
            for row, count, own in zip(parents, num_rows, drafts, strict=True):
                chosen = self._parents if own.parents is None else own.parents
                row[:count] = chosen[:count]
            return TreeLayout.of_parents(parents)
        if width not in self._layouts:
            tree = self.tree.truncate(width - 1)
            self._layouts[width] = TreeLayout.of(tree, torch.device("cpu"))
        return self._layouts[width]
