# SPDX-License-Identifier: Apache-2.0
"""Rejection and typical acceptance of some of a step's requests."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

from vllm_medusa.runner.v2.draw import Chunk, StepRows
from vllm_medusa.runner.v2.padded_trees import PaddedTrees
from vllm_medusa.runner.v2.request_states import TreeRequests
from vllm_medusa.runner.v2.tree_state import TreeState
from vllm_medusa.verify import (
    Verification,
    row_statistics,
    verify_rejection,
    verify_typical,
)

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    from vllm_medusa.tree import TokenTree


class SchemeVerifier:
    """Verifies what is not accepted exactly, a chunk of requests at a time.

    Attributes:
        draft_probs: [max_num_reqs, depth, draft_vocab] float32 by request state, what
            the step's candidates were drawn from; None unless the engine's acceptance
            is rejection.
    """

    def __init__(
        self,
        sampler: Sampler,
        trees: TreeState,
        tree: TokenTree,
        requests: TreeRequests,
        draft_probs: torch.Tensor | None,
        # [draft_vocab] int64, or None: the draft vocabulary is the whole one
        draft_token_ids: torch.Tensor | None,
    ) -> None:
        """`tree` is every request's tree; only rejection needs to know it."""
        self.sampler = sampler
        self.draft_probs = draft_probs
        self._trees = trees
        self._requests = requests
        self._draft_token_ids = draft_token_ids
        self._first_rows_of = cache(lambda num_rows: tree.truncate(num_rows - 1))

    def verify(
        self,
        scheme: str,
        step: StepRows,
        chunk: Chunk,
        # [rows of the chunk, vocab_size], after all processing, in tree order
        processed: torch.Tensor,
    ) -> tuple[torch.Tensor, Verification]:
        """Verify the chunk's requests, all of them of one scheme but "exact".

        Returns:
            Their places in the batch, [n] int64, and what each of them emits.
        """
        trees = PaddedTrees.of(
            self._trees, chunk.requests, chunk.num_rows, step.input_batch.num_reqs
        )
        verify = self._rejection if scheme == "rejection" else self._typical
        return trees.requests, verify(step, chunk, processed, trees)

    def _typical(
        self,
        step: StepRows,
        chunk: Chunk,
        processed: torch.Tensor,
        trees: PaddedTrees,
    ) -> Verification:
        states = step.input_batch.idx_mapping_np[chunk.requests]
        ends_greedily = self._requests.ends_greedily[states]
        # The noise is that of plain decoding.
        drawn = gumbel_sample(
            processed,
            step.input_batch.expanded_idx_mapping[chunk.rows],
            self.sampler.sampling_states.temperature.gpu,
            self.sampler.sampling_states.seeds.gpu,
            step.positions[chunk.rows],
            apply_temperature=False,
            is_drafting=False,
            use_fp64=self.sampler.use_fp64_gumbel,
        )[trees.rows]
        settings = np.stack(
            [
                self._requests.epsilon[states],
                self._requests.delta[states],
                ends_greedily,
            ]
        )
        epsilon, delta, takes_best = async_tensor_h2d(
            settings.astype(np.float32), device=processed.device
        )
        if ends_greedily.any():
            best = processed.argmax(dim=1)[trees.rows]
            drawn = torch.where(takes_best[:, None] > 0, best, drawn)
        candidates = step.candidates[chunk.rows].long()
        statistics = row_statistics(processed, candidates, trees.flat_parents)
        return verify_typical(
            candidates[trees.rows],
            drawn,
            statistics.logprobs[trees.rows],
            statistics.entropies[trees.rows],
            trees.parents,
            trees.depths,
            trees.num_rows,
            epsilon,
            delta,
            self._trees.max_depth,
        )

    def _rejection(
        self,
        step: StepRows,
        chunk: Chunk,
        processed: torch.Tensor,
        trees: PaddedTrees,
    ) -> Verification:
        assert self.draft_probs is not None
        tree = self._first_rows_of(trees.rows.shape[1])
        states = step.input_batch.idx_mapping[trees.requests]
        roots = trees.rows[:, 0]
        return verify_rejection(
            step.candidates[chunk.rows].long()[trees.rows],
            processed.float(),
            trees.rows,
            self.draft_probs[:, : tree.max_depth].index_select(0, states),
            self._draft_token_ids,
            trees.parents,
            trees.depths,
            trees.num_rows,
            self.sampler.sampling_states.seeds.gpu[states],
            step.positions[chunk.rows][roots],
            tree.max_children,
            self._trees.max_depth,
        )
