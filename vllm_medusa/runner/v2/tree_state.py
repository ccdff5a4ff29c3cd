# SPDX-License-Identifier: Apache-2.0
"""The trees of all requests on the device: one for all, or one for each."""

from __future__ import annotations

import torch

from vllm_medusa.tree import TokenTree
from vllm_medusa.tree.masks import ancestor_masks


class TreeState:
    """Trees by request state index, as `RequestState` keeps what belongs to requests.

    A fixed tree is one row that is expanded wherever a batch of trees is asked for:
    it costs nothing per step. Trees that the proposer chooses per request and step
    are stored by `store` after the draft and laid out by `lay_out` before the next
    forward pass, in buffers whose address never changes.

    Attributes:
        max_width: rows of the largest tree, root included.
        max_depth: of any tree.
        is_chain: whether every tree is a chain, which plain causal attention serves.
        is_fixed: whether all requests have the same tree.
    """

    def __init__(
        self,
        tree: TokenTree,
        max_num_reqs: int,
        device: torch.device,
        *,
        is_fixed: bool = True,
    ) -> None:
        """`tree` is every request's tree, and their bounds if `is_fixed` is False:
        no proposed tree has more nodes or is deeper."""
        self.max_width = tree.num_nodes + 1
        self.max_depth = tree.max_depth
        self.is_fixed = is_fixed
        self.is_chain = is_fixed and tree.is_chain
        parents = torch.tensor([(0, *tree.parents[1:])], dtype=torch.int32)
        # [num_trees, max_width] int32, parent row of each row, 0 for the root, where
        # num_trees is 1 or max_num_reqs
        self._parents = parents.to(device)
        self._depths = torch.tensor([tree.depths], dtype=torch.int32, device=device)
        # [num_trees, max_width, max_width] bool, in batch order
        self._ancestors = tree.ancestor_mask()[None].to(device)
        if not is_fixed:
            self._parents = self._parents.repeat(max_num_reqs, 1)
            self._depths = self._depths.repeat(max_num_reqs, 1)
            self._ancestors = self._ancestors.repeat(max_num_reqs, 1, 1)
            # The same in batch order, for one step.
            self._step_parents = self._parents.clone()
            self._step_depths = self._depths.clone()

    @property
    def num_bytes(self) -> int:
        """Memory that the trees take on the device."""
        tensors = [self._parents, self._depths, self._ancestors]
        if not self.is_fixed:
            tensors += [self._step_parents, self._step_depths]
        return sum(tensor.nbytes for tensor in tensors)

    # [num_rows] int64
    def depth_of(
        self,
        # [num_rows] int64, request state index of each row
        requests: torch.Tensor,
        # [num_rows] int32, the row's number in its tree
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """Depth of rows given by request state."""
        depths = (
            self._depths[0, rows] if self.is_fixed else self._depths[requests, rows]
        )
        return depths.long()

    def store(
        self,
        # [num_reqs] int64, request state indices
        idx_mapping: torch.Tensor,
        # [num_reqs, max_width] int32, 0 for the root
        parents: torch.Tensor,
    ) -> None:
        """Keep the trees that were just proposed, until the next step."""
        self._parents[idx_mapping] = parents
        self._depths[idx_mapping] = (
            ancestor_masks(parents).sum(-1, dtype=torch.int32) - 1
        )

    def lay_out(
        self,
        # [num_reqs] int64, request state indices in batch order
        idx_mapping: torch.Tensor,
    ) -> None:
        """Bring the trees of a step's requests into batch order."""
        if self.is_fixed:
            return
        num_reqs = idx_mapping.shape[0]
        parents = self._parents[idx_mapping]
        self._step_parents[:num_reqs] = parents
        self._step_depths[:num_reqs] = self._depths[idx_mapping]
        self._ancestors[:num_reqs] = ancestor_masks(parents)

    # [num_reqs, max_width] int32
    def parents(self, num_reqs: int) -> torch.Tensor:
        """Parent rows in batch order; stride 0 over requests for a fixed tree."""
        if self.is_fixed:
            return self._parents.expand(num_reqs, -1)
        return self._step_parents[:num_reqs]

    # [num_reqs, max_width] int32
    def depths(self, num_reqs: int) -> torch.Tensor:
        """Depths in batch order; stride 0 over requests for a fixed tree."""
        if self.is_fixed:
            return self._depths.expand(num_reqs, -1)
        return self._step_depths[:num_reqs]

    # [num_reqs, max_width, max_width] bool
    def ancestors(self, num_reqs: int) -> torch.Tensor:
        """Ancestor masks in batch order; stride 0 over requests for a fixed tree."""
        if self.is_fixed:
            return self._ancestors.expand(num_reqs, -1, -1)
        return self._ancestors[:num_reqs]
