# SPDX-License-Identifier: Apache-2.0
"""Verification of trees, in the place of vLLM's chain rejection sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from vllm.v1.worker.gpu.input_batch import get_num_sampled_and_rejected
from vllm.v1.worker.gpu.metrics.logits import get_num_nans
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import gather_draft_sampled

from vllm_medusa import timing
from vllm_medusa.kernels.move_rows import RowMover
from vllm_medusa.kernels.walk import Walk
from vllm_medusa.runner.v2.draw import StepRows
from vllm_medusa.runner.v2.path_logprobs import path_logprobs
from vllm_medusa.runner.v2.step_trees import StepTrees
from vllm_medusa.runner.v2.step_verification import StepVerifier

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.sample.sampler import Sampler


class TreeVerifier:
    """Verifies a step's trees and commits the accepted paths.

    Called as `RejectionSampler` is.

    Attributes:
        row_movers: one per attention group.
        num_accepted: scalar int64 on the device, nodes accepted so far.
        num_moved: scalar int64 on the device, rows moved so far.
    """

    # vLLM's warm-up asks every rejection sampler.
    enable_adaptive_verification = False

    def __init__(
        self,
        sampler: Sampler,
        step_trees: StepTrees,
        step_verifier: StepVerifier,
        device: torch.device,
    ) -> None:
        self.sampler = sampler
        self.step_trees = step_trees
        self.step_verifier = step_verifier
        self.row_movers: Sequence[RowMover] = ()
        self.num_accepted = torch.zeros((), dtype=torch.int64, device=device)
        self.num_moved = torch.zeros((), dtype=torch.int64, device=device)
        self._path_depths = torch.arange(
            step_trees.state.max_depth + 1, dtype=torch.int32, device=device
        )
        self._last_rows: torch.Tensor | None = None

    def reset_counters(self) -> None:
        """Count from zero again."""
        self.num_accepted.zero_()
        self.num_moved.zero_()

    # [num_reqs] int64
    def last_rows(self, input_batch: InputBatch) -> torch.Tensor:
        """Return among the step's tokens the last accepted row of each request."""
        if input_batch.num_draft_tokens == 0 or self._last_rows is None:
            # One row of logits per request: vLLM's sampler drew it.
            return input_batch.logits_indices
        return self._last_rows

    def __call__(
        self,
        # [num_rows, vocab_size]
        logits: torch.Tensor,
        input_batch: InputBatch,
        draft_logits: torch.Tensor | None = None,
        # [num_rows] bool, rows that a grammar excludes
        invalid_drafts: torch.Tensor | None = None,
    ) -> SamplerOutput:
        """Verify a step's trees; requests without drafts get their one draw."""
        num_nans = get_num_nans(logits) if self.sampler.compute_nans else None
        assert self.step_trees.row_depths is not None
        # Placeholder drafts of a request that has sampled nothing yet are -1: vLLM
        # knows them by the root's position, which is a row's less its depth.
        tokens, positions = gather_draft_sampled(
            input_batch.input_ids,
            input_batch.positions,
            input_batch.logits_indices,
            input_batch.expanded_idx_mapping,
            self.step_trees.row_depths,
            self.sampler.req_states.prefill_len.gpu,
        )
        candidates = tokens
        if invalid_drafts is not None:
            candidates = tokens.masked_fill(invalid_drafts, -1)
        step = StepRows(logits, tokens, candidates, positions, input_batch)
        verified = self.step_verifier.verify(step)
        walk, first_rows = verified.walk, input_batch.cu_num_logits[:-1]
        self._last_rows = input_batch.logits_indices[first_rows + walk.rows[:, -1]]
        with timing.measure("move"):
            self._commit(walk, input_batch)
        logprobs = path_logprobs(
            self.sampler,
            walk,
            verified.emitted,
            logits if verified.processed is None else verified.processed,
            input_batch,
        )
        num_sampled, num_rejected = get_num_sampled_and_rejected(
            walk.num_sampled,
            input_batch.seq_lens,
            input_batch.cu_num_logits,
            input_batch.idx_mapping,
            self.sampler.req_states.prefill_len.gpu,
        )
        return SamplerOutput(
            sampled_token_ids=walk.tokens,
            logprobs_tensors=logprobs,
            num_nans=num_nans,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
        )

    def _commit(self, walk: Walk, input_batch: InputBatch) -> None:
        """Move the accepted rows' keys and values behind the prefix."""
        state, num_trees = self.step_trees.state, self.step_trees.num_trees
        num_sampled = walk.num_sampled[:num_trees]
        self.num_accepted.add_(num_sampled.sum() - num_trees)
        if state.is_chain or num_trees == 0:
            return
        rows = walk.rows[:num_trees]
        ends = input_batch.cu_num_logits[1 : num_trees + 1]
        starts = input_batch.cu_num_logits[:num_trees]
        # Base positions are read on the device: the host's are optimistic.
        bases = input_batch.seq_lens[:num_trees] - (ends - starts)
        tables = self.step_trees.block_tables
        for mover, table in zip(self.row_movers, tables, strict=True):
            mover.move(table[:num_trees], bases, rows, num_sampled)
        displaced = (rows != self._path_depths) & (
            self._path_depths < num_sampled[:, None]
        )
        self.num_moved.add_(displaced.sum())
