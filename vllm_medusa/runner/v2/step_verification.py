# SPDX-License-Identifier: Apache-2.0
"""Verification of all requests of a step, whatever their acceptance schemes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from vllm.config.model import PROCESSED_LOGPROBS_MODES

from vllm_medusa import timing
from vllm_medusa.kernels.walk import Walk, walk_trees
from vllm_medusa.runner.v2.draw import Chunk, RowSampler, StepRows
from vllm_medusa.runner.v2.path_logprobs import emitted_at_rows
from vllm_medusa.runner.v2.request_states import TreeRequests
from vllm_medusa.runner.v2.schemes import SchemeVerifier
from vllm_medusa.runner.v2.tree_state import TreeState
from vllm_medusa.verify import Verification

# Of a chunk's logits in float32, that other schemes than the exact one hold at a time.
_NUM_COPIES = 4


@dataclass(frozen=True, slots=True)
class StepVerification:
    """What a step emits.

    `emitted` [num_rows] int64 is the token that each walked row emitted; elsewhere it
    means nothing. `processed` [num_rows, vocab_size] are the logits that tokens were
    drawn from, if logprobs need them.
    """

    walk: Walk
    emitted: torch.Tensor
    processed: torch.Tensor | None


class StepVerifier:
    """Draws at every row with vLLM's own sampler and finds what is accepted.

    The sampler keys its noise on (seed, position), and a row's position is that of
    its depth: with exact acceptance, the draws along the accepted path are those of
    plain decoding, at any temperature. Requests of other schemes are processed apart,
    so that a step without them costs nothing more.
    """

    def __init__(
        self,
        trees: TreeState,
        requests: TreeRequests,
        row_sampler: RowSampler,
        schemes: SchemeVerifier,
    ) -> None:
        self._trees = trees
        self._requests = requests
        self._row_sampler = row_sampler
        self._schemes = schemes

    def verify(self, step: StepRows) -> StepVerification:
        """Verify the step's trees, and draw for requests without drafts."""
        batch, sampler = step.input_batch, self._row_sampler.sampler
        return_logprobs = sampler.get_logprobs_dims(batch.idx_mapping_np) is not None
        keep = return_logprobs and sampler.logprobs_mode in PROCESSED_LOGPROBS_MODES
        parts = [
            (scheme, chunk)
            for scheme, requests in self._requests.by_scheme(batch)
            for chunk in self._row_sampler.chunks(
                step, requests, 1 if scheme == "exact" else _NUM_COPIES
            )
        ]

        def sample(chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor | None]:
            with timing.measure("draw"):
                return self._row_sampler.sample(
                    step, chunk, return_logprobs=return_logprobs, keep=keep
                )

        if len(parts) == 1 and parts[0][0] == "exact":
            drawn, processed = sample(parts[0][1])
            with timing.measure("verify"):
                return StepVerification(self._walk(step, drawn), drawn, processed)

        drawn, processed = torch.zeros_like(step.positions), None
        if keep:
            processed = torch.empty_like(step.logits, dtype=torch.float32)
        verified = []
        for scheme, chunk in parts:
            if scheme == "exact":
                drawn[chunk.rows], of_chunk = sample(chunk)
            else:
                with timing.measure("draw"):
                    of_chunk = self._row_sampler.process(step, chunk)
                with timing.measure("verify"):
                    verified.append(self._schemes.verify(scheme, step, chunk, of_chunk))
            if processed is not None and of_chunk is not None:
                processed[chunk.rows] = of_chunk
        with timing.measure("verify"):
            walk = self._walk(step, drawn)
            if verified:
                _merge(walk, verified)
                drawn = emitted_at_rows(walk, drawn, batch.cu_num_logits[:-1])
        return StepVerification(walk, drawn, processed)

    # `drawn` [num_rows] int64
    def _walk(self, step: StepRows, drawn: torch.Tensor) -> Walk:
        """Accept exactly; what comes of requests of other schemes means nothing."""
        batch = step.input_batch
        return walk_trees(
            step.candidates,
            drawn,
            self._trees.parents(batch.num_reqs),
            batch.cu_num_logits,
            self._trees.max_depth,
        )


def _merge(
    walk: Walk,
    # per chunk: [n] int64 places in the batch, and what was accepted there
    verified: list[tuple[torch.Tensor, Verification]],
) -> None:
    """Write what other schemes than the exact one accepted over `walk`."""
    for requests, verification in verified:
        walk.tokens.index_copy_(0, requests, verification.tokens)
        walk.rows.index_copy_(0, requests, verification.rows.int())
        num_sampled = verification.num_accepted.int() + 1
        walk.num_sampled.index_copy_(0, requests, num_sampled)
