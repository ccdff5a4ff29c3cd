# SPDX-License-Identifier: Apache-2.0
"""What verification must know of each request, by request state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from vllm.v1.worker.gpu.sample.bad_words import BadWordsState
from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
from vllm.v1.worker.gpu.sample.penalties import PenaltiesState, use_penalty

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.sample.sampler import Sampler

_BUILT_IN = (BadWordsState, LogitBiasState, PenaltiesState)


def reads_path(params: SamplingParams) -> bool:
    """Return whether a row's logits depend on the tokens before it, and not on its
    position alone, by vLLM's own processors."""
    return (
        use_penalty(params)
        or bool(params.bad_words_token_ids)
        or params.thinking_token_budget is not None
    )


class TreeRequests:
    """Facts of requests, by their place in vLLM's request state.

    Attributes:
        reads_path: [max_num_reqs] bool on the host, whether the request's logits
            depend on each row's path.
    """

    def __init__(self, max_num_reqs: int) -> None:
        self.reads_path = np.zeros(max_num_reqs, dtype=bool)
        self._all_read_path = False

    def bind(self, sampler: Sampler) -> None:
        """Take up the sampler: what its user's logits processors read is unknown."""
        self._all_read_path = any(
            not isinstance(processor, _BUILT_IN)
            for processor in sampler.logits_processors
        )

    def add(self, index: int, params: SamplingParams) -> None:
        """Take up a request."""
        self.reads_path[index] = self._all_read_path or reads_path(params)
