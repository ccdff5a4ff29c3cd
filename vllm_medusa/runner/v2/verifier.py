# SPDX-License-Identifier: Apache-2.0
"""Verification of trees, in the place of vLLM's chain rejection sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import get_num_sampled_and_rejected
from vllm.v1.worker.gpu.metrics.logits import get_num_nans
from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import gather_draft_sampled

from vllm_medusa import timing
from vllm_medusa.kernels.move_rows import RowMover
from vllm_medusa.kernels.walk import Walk, walk_trees
from vllm_medusa.runner.v2.draw import RowSampler, StepRows
from vllm_medusa.runner.v2.step_trees import StepTrees

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.sample.sampler import Sampler


class TreeVerifier:
    """Draws at every row with vLLM's own sampler, walks, and commits the path.

    The sampler keys its noise on (seed, position), and a row's position is that of
    its depth: the draws along the accepted path are those of plain decoding, at any
    temperature. Called as `RejectionSampler` is.

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
        row_sampler: RowSampler,
        device: torch.device,
    ) -> None:
        self.sampler = sampler
        self.step_trees = step_trees
        self.row_sampler = row_sampler
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
        with timing.measure("draw"):
            step = StepRows(logits, tokens, positions, input_batch)
            drawn, processed = self._draw(step)
        with timing.measure("verify"):
            if invalid_drafts is not None:
                tokens = tokens.masked_fill(invalid_drafts, -1)
            walk = walk_trees(
                tokens,
                drawn,
                self.step_trees.state.parents(input_batch.num_reqs),
                input_batch.cu_num_logits,
                self.step_trees.state.max_depth,
            )
            first_rows = input_batch.cu_num_logits[:-1]
            self._last_rows = input_batch.logits_indices[first_rows + walk.rows[:, -1]]
        with timing.measure("move"):
            self._commit(walk, input_batch)
        logprobs = self._logprobs(walk, drawn, logits, processed, input_batch)
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

    # ([num_rows] int64, [num_rows, vocab_size] or None unless logprobs need it)
    def _draw(self, step: StepRows) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw a token at every row as plain decoding would there."""
        batch, sampler = step.input_batch, self.sampler
        return_logprobs = sampler.get_logprobs_dims(batch.idx_mapping_np) is not None
        keep = return_logprobs and sampler.logprobs_mode in PROCESSED_LOGPROBS_MODES
        drawn, processed = [], []
        for chunk in self.row_sampler.chunks(step, np.arange(batch.num_reqs)):
            of_chunk = self.row_sampler.sample(
                step, chunk, return_logprobs=return_logprobs, keep=keep
            )
            drawn.append(of_chunk[0])
            processed.append(of_chunk[1])
        if len(drawn) == 1:
            return drawn[0], processed[0]
        kept = [part for part in processed if part is not None]
        return torch.cat(drawn), torch.cat(kept) if kept else None

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

    def _logprobs(
        self,
        walk: Walk,
        # [num_rows] int64
        drawn: torch.Tensor,
        # [num_rows, vocab_size]
        logits: torch.Tensor,
        # [num_rows, vocab_size] or None
        processed: torch.Tensor | None,
        input_batch: InputBatch,
    ) -> LogprobsTensors | None:
        """Return logprobs of the walked rows, in the rows where vLLM looks for them:
        those of a request's i-th token in its i-th row."""
        dims = self.sampler.get_logprobs_dims(input_batch.idx_mapping_np)
        if dims is None:
            return None
        scores = logits if processed is None else processed
        num_logprobs, max_per_req_token_ids = dims
        is_expanded = scores.shape[0] != input_batch.num_reqs
        # Of every row's own draw, so that only results change places: the logits of
        # all rows may fill what memory is left.
        of_rows = compute_topk_scores(
            scores,
            num_logprobs,
            drawn,
            input_batch.cu_num_logits_np.tolist() if is_expanded else None,
            logprob_token_ids_state=self.sampler.logprob_token_ids_state,
            expanded_idx_mapping=input_batch.expanded_idx_mapping,
            max_per_req_token_ids=max_per_req_token_ids,
            logits_mode=self.sampler.logprobs_mode
            in ("raw_logits", "processed_logits"),
        )
        first_rows = input_batch.cu_num_logits[:-1]
        row_ids = torch.arange(scores.shape[0], device=scores.device)
        requests = torch.searchsorted(first_rows, row_ids, right=True) - 1
        # Beyond the path any row will do: it is never read.
        step = input_batch.expanded_local_pos.long().clamp_max(walk.rows.shape[1] - 1)
        source = first_rows[requests] + walk.rows[requests, step]
        return of_rows._replace(
            logprob_token_ids=of_rows.logprob_token_ids[source],
            logprobs=of_rows.logprobs[source],
            selected_token_ranks=of_rows.selected_token_ranks[source],
        )
