# SPDX-License-Identifier: Apache-2.0
"""Verification of trees, in the place of vLLM's chain rejection sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.worker.gpu.input_batch import get_num_sampled_and_rejected
from vllm.v1.worker.gpu.metrics.logits import get_num_nans
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import gather_draft_sampled

from vllm_medusa import timing
from vllm_medusa.kernels.move_rows import RowMover
from vllm_medusa.kernels.walk import Walk, walk_trees
from vllm_medusa.runner.v2.draw import Chunk, RowSampler, StepRows
from vllm_medusa.runner.v2.path_logprobs import emitted_at_rows, path_logprobs
from vllm_medusa.runner.v2.request_states import TreeRequests
from vllm_medusa.runner.v2.schemes import SchemeVerifier
from vllm_medusa.runner.v2.step_trees import StepTrees
from vllm_medusa.verify import Verification

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.sample.sampler import Sampler


@dataclass(frozen=True, slots=True)
class _Judged:
    """What was found out about a step's rows.

    `drawn` [num_rows] int64, one draw at each row of an exact request. `processed`
    [num_rows, vocab_size], what the rows' tokens are drawn from, if logprobs need it.
    `verified`: places in the batch of the other requests, and what became of them.
    """

    drawn: torch.Tensor
    processed: torch.Tensor | None
    verified: list[tuple[torch.Tensor, Verification]]


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
        schemes: SchemeVerifier,
        requests: TreeRequests,
        device: torch.device,
    ) -> None:
        self.sampler = sampler
        self.step_trees = step_trees
        self.row_sampler = row_sampler
        self.schemes = schemes
        self.requests = requests
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
        judged = self._judge(step)
        first_rows = input_batch.cu_num_logits[:-1]
        with timing.measure("verify"):
            walk = self._walk(step, judged)
            self._last_rows = input_batch.logits_indices[first_rows + walk.rows[:, -1]]
        with timing.measure("move"):
            self._commit(walk, input_batch)
        emitted = judged.drawn
        if judged.verified:
            emitted = emitted_at_rows(walk, emitted, first_rows)
        scores = logits if judged.processed is None else judged.processed
        logprobs = path_logprobs(self.sampler, walk, emitted, scores, input_batch)
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

    def _judge(self, step: StepRows) -> _Judged:
        """Draw at the rows of exact requests, verify the others."""
        batch, sampler = step.input_batch, self.sampler
        return_logprobs = sampler.get_logprobs_dims(batch.idx_mapping_np) is not None
        keep = return_logprobs and sampler.logprobs_mode in PROCESSED_LOGPROBS_MODES
        parts = [
            (scheme, chunk)
            for scheme, requests in self.requests.by_scheme(batch)
            for chunk in self.row_sampler.chunks(step, requests)
        ]

        def sample(chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor | None]:
            with timing.measure("draw"):
                return self.row_sampler.sample(
                    step, chunk, return_logprobs=return_logprobs, keep=keep
                )

        if len(parts) == 1 and parts[0][0] == "exact":
            return _Judged(*sample(parts[0][1]), [])
        drawn = torch.zeros_like(step.positions)
        processed = None
        if keep:
            processed = torch.empty_like(step.logits, dtype=torch.float32)
        verified = []
        for scheme, chunk in parts:
            if scheme == "exact":
                drawn[chunk.rows], of_chunk = sample(chunk)
            else:
                with timing.measure("draw"):
                    of_chunk = self.row_sampler.process(step, chunk)
                with timing.measure("verify"):
                    verified.append(self.schemes.verify(scheme, step, chunk, of_chunk))
            if processed is not None and of_chunk is not None:
                processed[chunk.rows] = of_chunk
        return _Judged(drawn, processed, verified)

    def _walk(self, step: StepRows, judged: _Judged) -> Walk:
        """Put together what the step emits."""
        trees, batch = self.step_trees.state, step.input_batch
        walk = walk_trees(
            step.candidates,
            judged.drawn,
            trees.parents(batch.num_reqs),
            batch.cu_num_logits,
            trees.max_depth,
        )
        for requests, verification in judged.verified:
            walk.tokens.index_copy_(0, requests, verification.tokens)
            walk.rows.index_copy_(0, requests, verification.rows.int())
            num_sampled = verification.num_accepted.int() + 1
            walk.num_sampled.index_copy_(0, requests, num_sampled)
        return walk

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
