# SPDX-License-Identifier: Apache-2.0
"""What each request's sampling parameters ask of drafts and verification."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.worker.gpu.sample.bad_words import BadWordsState
from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
from vllm.v1.worker.gpu.sample.penalties import PenaltiesState

from tests.unit.runner.steps import HostTensor
from vllm_medusa.acceptance import Acceptance
from vllm_medusa.runner.v2 import request_states
from vllm_medusa.runner.v2.request_states import TreeRequests, reads_path


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_states, "UvaBackedTensor", HostTensor)


def bad_words() -> SamplingParams:
    params = SamplingParams()
    # As the front end sets it from `bad_words`.
    params._bad_words_token_ids = [[3, 4]]
    return params


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(presence_penalty=0.1), True),
        (SamplingParams(frequency_penalty=-0.1), True),
        (SamplingParams(repetition_penalty=1.1), True),
        (SamplingParams(thinking_token_budget=0), True),
        (bad_words(), True),
        (SamplingParams(), False),
        (
            SamplingParams(
                temperature=0.3,
                top_k=5,
                top_p=0.9,
                min_p=0.1,
                min_tokens=4,
                logit_bias={3: 1.0},
                allowed_token_ids=[3],
                logprobs=2,
                seed=1,
            ),
            False,
        ),
    ],
)
def test_what_reads_a_path(params: SamplingParams, expected: bool) -> None:
    assert reads_path(params) is expected


def test_processors_of_the_user_read_paths() -> None:
    """vLLM's own say per request whether they do; nothing is known of others."""
    own = [
        object.__new__(processor)
        for processor in (LogitBiasState, PenaltiesState, BadWordsState)
    ]
    for others, expected in (([], False), ([object()], True)):
        requests = TreeRequests(4, Acceptance())
        sampler: Any = SimpleNamespace(logits_processors=[*own, *others])
        requests.bind(sampler)
        requests.add(2, SamplingParams())
        assert requests.reads_path.tolist() == [False, False, expected, False]


def test_a_place_is_taken_over_in_full() -> None:
    requests = TreeRequests(3, Acceptance(scheme="rejection", epsilon=0.2))
    first = SamplingParams(
        temperature=0.7,
        presence_penalty=1.0,
        structured_outputs=StructuredOutputsParams(regex="a+"),
    )
    requests.add(1, first)
    assert requests.schemes.tolist() == ["exact", "rejection", "exact"]
    assert requests.draft_temperature.np[1] == np.float32(0.7)
    assert requests.has_grammar.np.tolist() == [False, True, False]
    second = SamplingParams(
        extra_args={
            "medusa_acceptance": "typical",
            "medusa_delta": "none",
            "medusa_first_token": "greedy",
        }
    )
    requests.add(1, second)
    assert requests.schemes[1] == "typical"
    assert not requests.reads_path[1]
    assert not requests.has_grammar.np[1]
    assert requests.draft_temperature.np[1] == 0
    assert requests.ends_greedily[1]
    assert requests.epsilon[1] == np.float32(0.2)
    assert requests.delta[1] == np.inf
    # At temperature 0 all schemes are exact acceptance, and the best drafts are best.
    requests.add(1, SamplingParams(temperature=0.0))
    assert requests.schemes[1] == "exact"
    assert requests.draft_temperature.np[1] == 0


def test_groups_of_a_step() -> None:
    requests = TreeRequests(6, Acceptance(scheme="typical"))
    for index in range(6):
        asked = {"medusa_acceptance": "exact"} if index == 3 else None
        requests.add(index, SamplingParams(extra_args=asked))
    batch: Any = SimpleNamespace(
        idx_mapping_np=np.array([4, 3, 0, 5]),
        num_draft_tokens_per_req=np.array([3, 3, 2, 0]),
    )
    groups = {name: group.tolist() for name, group in requests.by_scheme(batch)}
    assert groups == {"exact": [1, 3], "typical": [0, 2]}
    # The step's order must not change what is known of the requests.
    assert requests.schemes.tolist().count("typical") == 5
