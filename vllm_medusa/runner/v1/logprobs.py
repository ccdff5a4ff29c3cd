# SPDX-License-Identifier: Apache-2.0
"""Logprobs of the tokens that a step emits."""

from __future__ import annotations

import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from vllm_medusa.verify import PLACEHOLDER


def are_asked_for(metadata: SamplingMetadata) -> bool:
    """Whether any request of the step wants logprobs."""
    return metadata.max_num_logprobs is not None or bool(metadata.logprob_token_ids)


def gather(
    sampler: Sampler,
    metadata: SamplingMetadata,
    # [num_rows, vocab_size], before any processing
    raw: torch.Tensor,
    # [num_rows, vocab_size] float32, of `Sampler.sample`; None in the "raw" modes
    processed: torch.Tensor | None,
    # [num_reqs, width] int32, PLACEHOLDER where there is none
    sampled: torch.Tensor,
    # [num_reqs, width] int64, the row that each token was taken from
    rows: torch.Tensor,
) -> LogprobsTensors:
    """Return one row of logprobs per entry of `sampled`, as vLLM wants them
    (`RejectionSampler.parse_output`); those of placeholders are of no use.

    Only visited rows are computed. As `Sampler.forward`, if a request names
    `logprob_token_ids`, all get the logprobs of named tokens.
    """
    emitted = sampled != PLACEHOLDER
    tokens = sampled[emitted].long()
    values = (raw if processed is None else processed)[rows[emitted]]
    if processed is None:
        if sampler.logprobs_mode == "raw_logprobs":
            values = sampler.compute_logprobs(values)
        else:
            values = values.float()
    if metadata.logprob_token_ids:
        # [num_emitted]
        owners = emitted.nonzero()[:, 0].tolist()
        named = metadata.logprob_token_ids
        tensors = sampler.gather_specific_token_logprobs(
            values,
            {i: named[owner] for i, owner in enumerate(owners) if owner in named},
            tokens,
        )
    else:
        assert metadata.max_num_logprobs is not None
        tensors = sampler.gather_logprobs(values, metadata.max_num_logprobs, tokens)
    # [num_reqs * width], a row of `tensors` for each entry
    places = (emitted.flatten().cumsum(0) - 1).clamp(min=0)
    return LogprobsTensors(
        tensors.logprob_token_ids[places],
        tensors.logprobs[places],
        tensors.selected_token_ranks[places],
    )
