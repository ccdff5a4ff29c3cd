# SPDX-License-Identifier: Apache-2.0
"""The trees of one step, for the attention metadata builders and the verifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vllm_medusa.attention.tree_rows import TreeRows
from vllm_medusa.runner.v2.tree_state import TreeState

if TYPE_CHECKING:
    from vllm.v1.attention.backend import CommonAttentionMetadata
    from vllm.v1.worker.gpu.input_batch import InputBatch


class StepTrees:
    """Which leading requests of a step verify trees; `state` has the trees.

    Model Runner V2 sorts requests with drafts to the front (`sort_batch_req_ids`),
    and their number and rows are known on the host.

    Attributes:
        num_trees: requests of the step that verify a tree.
        block_tables: per attention group [num_reqs, max_blocks] int32, of the step.
        row_depths: [num_logits] integer, depth in its tree of each row of a step with
            trees; 0 for rows of other requests.
    """

    def __init__(self, state: TreeState) -> None:
        self.state = state
        self.num_trees = 0
        self.block_tables: tuple[torch.Tensor, ...] = ()
        self.row_depths: torch.Tensor | None = None
        self._num_tokens = 0
        self._width = 0
        self._has_trees_alone = False

    def clear(self) -> None:
        """Let the next step be one without trees."""
        self.num_trees = self._num_tokens = self._width = 0
        self._has_trees_alone = False
        self.block_tables = ()
        self.row_depths = None

    def begin(
        self, input_batch: InputBatch, block_tables: tuple[torch.Tensor, ...]
    ) -> None:
        """Take up a step: trees in batch order, positions by depth.

        To be called when the slots have been computed from the linear positions.
        """
        self.clear()
        self.block_tables = block_tables
        num_drafts = input_batch.num_draft_tokens_per_req
        if num_drafts is None or input_batch.num_draft_tokens == 0:
            return
        self.num_trees = int((num_drafts > 0).sum())
        self._num_tokens = int(input_batch.query_start_loc_np[self.num_trees])
        self._width = int(input_batch.num_scheduled_tokens[: self.num_trees].max())
        self._has_trees_alone = self.num_trees == input_batch.num_reqs
        self.state.lay_out(input_batch.idx_mapping)
        rows = input_batch.expanded_local_pos
        self.row_depths = rows
        if self.state.is_chain:
            return
        # A row's position was base + row; its query and key belong at base + depth.
        depths = self.state.depth_of(input_batch.expanded_idx_mapping, rows)
        input_batch.positions.index_add_(0, input_batch.logits_indices, depths - rows)
        self.row_depths = depths

    def rows(
        self, common: CommonAttentionMetadata, for_capture: bool
    ) -> TreeRows | None:
        """Describe the step's tree rows, or None if causal attention serves them.

        A full CUDA graph is captured for a uniform batch: all requests have the same
        number of rows, and more than one means trees.
        """
        num_trees, num_tokens, width = self.num_trees, self._num_tokens, self._width
        has_trees_alone = self._has_trees_alone
        if for_capture:
            width = common.max_query_len
            num_trees = common.num_reqs
            has_trees_alone = width > 1
        if self.state.is_chain or num_trees == 0 or width <= 1:
            return None
        if has_trees_alone:
            # With the padding of a full graph, as in its capture.
            num_trees, num_tokens = common.num_reqs, common.num_actual_tokens
        return TreeRows(
            num_reqs=num_trees,
            num_tokens=num_tokens,
            width=width,
            max_seq_len=common.max_seq_len,
            is_whole_step=has_trees_alone,
            query_start_loc=common.query_start_loc[: num_trees + 1],
            seq_lens=common.seq_lens[:num_trees],
            depths=self.state.depths(num_trees),
            ancestors=self.state.ancestors(num_trees),
        )
