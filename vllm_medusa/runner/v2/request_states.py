# SPDX-License-Identifier: Apache-2.0
"""What drafts and verification must know of each request, by request state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor
from vllm.v1.worker.gpu.sample.bad_words import BadWordsState
from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
from vllm.v1.worker.gpu.sample.penalties import PenaltiesState, use_penalty

from vllm_medusa.acceptance import Acceptance, scheme_names
from vllm_medusa.request_options import RequestOptions

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.input_batch import InputBatch
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
        schemes: [max_num_reqs] str on the host, how drafts are accepted.
        epsilon, delta: [max_num_reqs] float32 on the host, of typical acceptance; an
            unset delta is infinite.
        ends_greedily: [max_num_reqs] bool on the host, whether typical acceptance
            emits the most probable token after the accepted ones.
        draft_temperature: [max_num_reqs] float32, at which candidates are drawn
            from the heads; 0: the best ones.
        has_grammar: [max_num_reqs] bool, whether the scheduler must know the request's
            tree.
    """

    def __init__(self, max_num_reqs: int, acceptance: Acceptance) -> None:
        """`acceptance` is the engine's."""
        names = scheme_names()
        self.reads_path = np.zeros(max_num_reqs, dtype=bool)
        self.schemes = np.full(max_num_reqs, "exact", dtype=f"<U{max(map(len, names))}")
        self.epsilon = np.zeros(max_num_reqs, dtype=np.float32)
        self.delta = np.zeros(max_num_reqs, dtype=np.float32)
        self.ends_greedily = np.zeros(max_num_reqs, dtype=bool)
        self.draft_temperature = UvaBackedTensor(max_num_reqs, dtype=torch.float32)
        self.has_grammar = UvaBackedTensor(max_num_reqs, dtype=torch.bool)
        self._acceptance = acceptance
        self._all_read_path = False

    def bind(self, sampler: Sampler) -> None:
        """Take up the sampler: what its user's logits processors read is unknown."""
        self._all_read_path = any(
            not isinstance(processor, _BUILT_IN)
            for processor in sampler.logits_processors
        )

    def add(self, index: int, params: SamplingParams) -> None:
        """Take up a request; `flush` brings it to the device."""
        acceptance = RequestOptions.of(params, self._acceptance).acceptance
        self.reads_path[index] = self._all_read_path or reads_path(params)
        self.schemes[index] = acceptance.scheme
        self.epsilon[index] = acceptance.epsilon
        delta = acceptance.delta
        self.delta[index] = np.inf if delta is None else delta
        self.ends_greedily[index] = acceptance.first_token == "greedy"
        is_drawn = acceptance.scheme == "rejection"
        self.draft_temperature.np[index] = params.temperature if is_drawn else 0.0
        self.has_grammar.np[index] = params.structured_outputs is not None

    def flush(self) -> None:
        """Bring added requests to the device; at most once a step."""
        self.draft_temperature.copy_to_uva()
        self.has_grammar.copy_to_uva()

    def by_scheme(
        self, input_batch: InputBatch
    ) -> list[tuple[str, npt.NDArray[np.intp]]]:
        """Return the step's requests, by their place in the batch, for each scheme that
        some of them have; without drafts there is nothing to accept but a draw."""
        schemes = self.schemes[input_batch.idx_mapping_np]
        assert input_batch.num_draft_tokens_per_req is not None
        schemes[input_batch.num_draft_tokens_per_req == 0] = "exact"
        groups = [(name, np.flatnonzero(schemes == name)) for name in scheme_names()]
        return [(name, requests) for name, requests in groups if len(requests)]
