# SPDX-License-Identifier: Apache-2.0
"""What a request's parameters ask of the steps that it is in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from vllm import SamplingParams

from vllm_medusa.acceptance import Acceptance
from vllm_medusa.heads.draft_sampling import DraftSampling
from vllm_medusa.request_options import RequestOptions

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_input_batch import CachedRequestState


@dataclass(frozen=True, slots=True)
class RequestTraits:
    """Read from the parameters once per request.

    Attributes:
        acceptance: how its drafts are accepted.
        is_processed: whether its logits are changed before they are sampled from,
            temperature, top-p and top-k aside.
        needs_rows: whether vLLM's sampler alone does not serve it even in a step
            without drafts.
        has_grammar: whether its output is structured.
        draft_temperature: at which its candidates are drawn; 0 for the best ones.
        seed: of the noise of draft and verification; without a seed of the request's
            own one that stays the same while it lives.
    """

    acceptance: Acceptance
    is_processed: bool
    needs_rows: bool
    has_grammar: bool
    draft_temperature: float
    seed: int

    @staticmethod
    def of(params: SamplingParams | None, engine: Acceptance) -> RequestTraits:
        """Read `params`; `engine` is how drafts are accepted by default."""
        assert params is not None, "only requests that generate text have drafts"
        acceptance = RequestOptions.of(params, engine).acceptance
        is_sampling = acceptance.scheme == "rejection"
        seed = params.seed
        if seed is None:
            # Ranks share the state of PyTorch's generator.
            seed = int(torch.randint(2**63 - 1, ())) if is_sampling else 0
        else:
            # PyTorch takes seeds of 64 bits with or without a sign.
            seed = (seed + 2**63) % 2**64 - 2**63
        has_budget = params.thinking_token_budget is not None
        return RequestTraits(
            acceptance=acceptance,
            is_processed=(
                has_budget
                or params.presence_penalty != 0.0
                or params.frequency_penalty != 0.0
                or params.repetition_penalty != 1.0
                or params.min_p > 0.0
                or params.min_tokens > 0
                or bool(params.bad_words_token_ids)
                or bool(params.logit_bias)
                or bool(params.allowed_token_ids)
            ),
            needs_rows=has_budget,
            has_grammar=params.structured_outputs is not None,
            draft_temperature=params.temperature if is_sampling else 0.0,
            seed=seed,
        )


def draft_sampling(
    traits: Sequence[RequestTraits],
    # [num_reqs] int64, of each request's last token
    positions: torch.Tensor,
) -> DraftSampling:
    """Return how the candidates that will follow the last tokens are drawn."""
    return DraftSampling(
        torch.tensor([t.draft_temperature for t in traits]),
        torch.tensor([t.seed for t in traits]),
        positions,
    )


class TraitBook:
    """The traits of the requests that live."""

    def __init__(self, engine: Acceptance) -> None:
        """`engine` is how drafts are accepted by default."""
        self._engine = engine
        self._traits: dict[str, RequestTraits] = {}

    def look_up(
        self, req_ids: Sequence[str], requests: Mapping[str, CachedRequestState]
    ) -> list[RequestTraits]:
        """Return the traits of some requests, read at the first time."""
        for req_id in req_ids:
            if req_id not in self._traits:
                params = requests[req_id].sampling_params
                self._traits[req_id] = RequestTraits.of(params, self._engine)
        return [self._traits[req_id] for req_id in req_ids]

    def forget(self, req_ids: Collection[str]) -> None:
        """Drop requests that have ended."""
        for req_id in req_ids:
            self._traits.pop(req_id, None)
