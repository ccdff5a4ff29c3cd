# SPDX-License-Identifier: Apache-2.0
"""Model Runner V1's sampler on tree rows."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.logits_processor import (
    LogitBiasLogitsProcessor,
    LogitsProcessors,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.logits_processor import (
    build_logitsprocs as upstream_build_logitsprocs,
)
from vllm.v1.sample.metadata import SamplingMetadata

from vllm_medusa.runner.requests import custom_processors_reason

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_BUILT_IN = (LogitBiasLogitsProcessor, MinPLogitsProcessor, MinTokensLogitsProcessor)


def build_logitsprocs(vllm_config: VllmConfig, *args: Any) -> LogitsProcessors:
    """Build the processors that an engine without speculative decoding has.

    vLLM's own function leaves min_p, logit_bias and its user's processors out, or
    refuses them, where there is a speculative method; requests that need one have
    no tree here, so all of them work.
    """
    plain = copy(vllm_config)
    plain.speculative_config = None
    return upstream_build_logitsprocs(plain, *args)


def custom_processors(processors: LogitsProcessors) -> str | None:
    """As `custom_processors_reason`, of Model Runner V1's processors."""
    return custom_processors_reason(processors.all, _BUILT_IN)


def with_seeds(metadata: SamplingMetadata, requests: set[int]) -> SamplingMetadata:
    """Return the metadata with the generators of `requests` alone, so that no draw
    is taken from the others'."""
    generators = metadata.generators
    kept = {index: generators[index] for index in generators.keys() & requests}
    return replace(metadata, generators=kept)


def row_metadata(
    metadata: SamplingMetadata,
    # [num_rows] int64, request of each row
    owners: torch.Tensor,
) -> SamplingMetadata:
    """Return the metadata with one entry per row instead of one per request.

    For `Sampler.sample`, which reads temperature, top-p, top-k and generators.
    Rows of one seeded request draw from its generator one after the other.
    """
    generators = metadata.generators
    return replace(
        metadata,
        temperature=_at(metadata.temperature, owners),
        top_p=_at(metadata.top_p, owners),
        top_k=_at(metadata.top_k, owners),
        generators={
            row: generators[owner]
            for row, owner in enumerate(owners.tolist() if generators else ())
            if owner in generators
        },
        max_num_logprobs=None,
        logprob_token_ids=None,
        # min_p is the one argmax-invariant processor; its requests have no tree.
        logitsprocs=LogitsProcessors(),
    )


def _at(values: torch.Tensor | None, owners: torch.Tensor) -> torch.Tensor | None:
    return None if values is None else values[owners]


def merge_plain(
    output: SamplerOutput,
    plain: SamplerOutput,
    # [num_reqs] bool
    is_plain: torch.Tensor,
) -> SamplerOutput:
    """Take the requests without a tree, and all logprobs, from `plain`.

    `output.sampled_token_ids` is [num_reqs, width], that of `plain` [num_reqs, 1].
    vLLM expects one row of logprobs per entry of the former
    (`RejectionSampler.parse_output`); only plain requests ask for logprobs, and they
    have one token, so the other entries are never read.
    """
    sampled = output.sampled_token_ids
    sampled[is_plain, 0] = plain.sampled_token_ids[is_plain, 0]
    logprobs = plain.logprobs_tensors
    if logprobs is None:
        return output
    width = sampled.shape[1]
    return SamplerOutput(
        sampled_token_ids=sampled,
        logprobs_tensors=LogprobsTensors(
            logprobs.logprob_token_ids.repeat_interleave(width, dim=0),
            logprobs.logprobs.repeat_interleave(width, dim=0),
            logprobs.selected_token_ranks.repeat_interleave(width, dim=0),
        ),
    )
