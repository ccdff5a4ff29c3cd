# SPDX-License-Identifier: Apache-2.0
"""vLLM's sampler on the rows of a step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from vllm_medusa.runner.v1 import logprobs
from vllm_medusa.runner.v1.generators import RowGenerators
from vllm_medusa.runner.v1.processors import RowProcessors
from vllm_medusa.runner.v1.request_traits import RequestTraits
from vllm_medusa.runner.v1.rows import (
    StepRows,
    processing_metadata,
    row_metadata,
    target_logits,
)
from vllm_medusa.runner.v1.thinking import RowThinkingBudgets

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_input_batch import CachedRequestState


@dataclass(frozen=True, slots=True)
class Draws:
    """What was drawn at the rows of a step.

    `tokens` [num_rows] int64: one per row. `target` [num_rows, vocab_size] float32:
    logits of the distributions that they were drawn from, if a request's acceptance
    needs them. `raw` and `processed` [num_rows, vocab_size]: what logprobs are made of,
    if a request wants any. `generators`: of seeded requests, behind these draws.
    """

    tokens: torch.Tensor
    target: torch.Tensor | None
    raw: torch.Tensor | None
    processed: torch.Tensor | None
    generators: RowGenerators


class RowSampler:
    """Draws at every row as vLLM would, were the row a request of its own."""

    def __init__(
        self,
        sampler: Sampler,
        processors: RowProcessors,
        budgets: RowThinkingBudgets | None,
    ) -> None:
        """`budgets` is None in an engine without reasoning."""
        self.sampler = sampler
        self.processors = processors
        self.budgets = budgets

    def draw(
        self,
        # [num_rows, vocab_size], may be changed
        logits: torch.Tensor,
        metadata: SamplingMetadata,
        rows: StepRows,
        # [num_reqs] each, of the step
        requests: Sequence[CachedRequestState],
        traits: Sequence[RequestTraits],
    ) -> Draws:
        """Draw at every row of a step; requests without drafts have one."""
        raw = None
        if logprobs.are_asked_for(metadata):
            # float32 is changed in place, other types are converted first.
            raw = logits.clone() if logits.dtype == torch.float32 else logits
        logits = logits.float()
        generators = RowGenerators(
            metadata.generators, rows, self.sampler, logits.shape[1]
        )
        if self.processors.has_custom or any(t.is_processed for t in traits):
            row_data = self._as_requests(metadata, rows, generators, requests)
            logits = self.sampler.apply_logits_processors(
                logits, row_data, predict_bonus_token=False
            )
        else:
            row_data = row_metadata(metadata, rows.owners, generators.by_row)
        target = None
        if any(t.acceptance.scheme != "exact" for t in traits):
            target = target_logits(logits, row_data)
        tokens, processed = self.sampler.sample(logits, row_data)
        return Draws(tokens.long(), target, raw, processed, generators)

    def _as_requests(
        self,
        metadata: SamplingMetadata,
        rows: StepRows,
        generators: RowGenerators,
        requests: Sequence[CachedRequestState],
    ) -> SamplingMetadata:
        """Present the rows to processors and thinking budgets as requests."""
        rows.follow_paths()
        outputs = rows.outputs([request.output_token_ids for request in requests])
        owners = [requests[owner] for owner in rows.owners.tolist()]
        self.processors.replace_rows(
            [
                (owner.sampling_params, owner.prompt_token_ids, output)
                for owner, output in zip(owners, outputs, strict=True)
            ]
        )
        if self.budgets is not None:
            self.budgets.begin(owners, rows.parents)
        return processing_metadata(
            metadata,
            rows,
            generators.by_row,
            outputs,
            self.processors.processors,
            self.budgets,
        )

    def logprobs(
        self,
        draws: Draws,
        metadata: SamplingMetadata,
        # [num_reqs, width] int32, PLACEHOLDER where there is none
        sampled: torch.Tensor,
        # [num_reqs, width] int64, the row that each token was taken from
        rows: torch.Tensor,
    ) -> LogprobsTensors | None:
        """As `logprobs.gather`, if a request wants any."""
        if draws.raw is None:
            return None
        return logprobs.gather(
            self.sampler, metadata, draws.raw, draws.processed, sampled, rows
        )

    def commit(
        self,
        draws: Draws,
        # [num_reqs] each; the row of a request's last accepted token
        req_ids: Sequence[str],
        last_rows: Sequence[int],
    ) -> None:
        """Let each request go on from the row that it has come to."""
        draws.generators.commit(last_rows)
        if self.budgets is not None:
            self.budgets.commit(dict(zip(req_ids, last_rows, strict=True)))

    def forget(self, req_ids: Collection[str]) -> None:
        """Drop requests that have ended."""
        if self.budgets is not None:
            self.budgets.forget(req_ids)
