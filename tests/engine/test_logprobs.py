# SPDX-License-Identifier: Apache-2.0
"""Logprobs of the rows that were visited are those of plain vLLM, in every mode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from vllm.outputs import RequestOutput

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import greedy
from tests.engine.support.models import VOCAB_SIZE
from tests.engine.support.parameters import Comparison, Requests, compared
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((4, 16), (1, 14))
ALLOWED = list(range(20, 150))
CASES: dict[str, dict[str, Any]] = {
    "of the token": {"logprobs": 0},
    "of the best three": {"logprobs": 3},
    "of all": {"logprobs": -1},
    "flat": {"logprobs": 2, "flat_logprobs": True},
    "prompt": {"prompt_logprobs": 2},
    "prompt and text": {"prompt_logprobs": 0, "logprobs": 1},
    "penalties": {"logprobs": 3, "presence_penalty": 1.5, "repetition_penalty": 1.3},
    "allowed tokens": {"logprobs": -1, "allowed_token_ids": ALLOWED},
    # Seeded draws are plain vLLM's on V2 alone; one token is V1's only choice.
    "temperature": {"logprobs": 3, "temperature": 0.7, "top_k": sample(1, 6)},
}
MODES = sample(
    ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"),
    ("raw_logits", "processed_logprobs"),
)


def _requests(prompts: list[list[int]], cases: dict[str, dict[str, Any]]) -> Requests:
    params = {
        name: [greedy(LENGTH, seed=50 + i, **options) for i in range(COUNT)]
        for name, options in cases.items()
    }
    return Requests.of(prompts[:COUNT], LENGTH, params)


def test_logprob_token_ids(
    llama: TinyModel,
    prompts: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Scores of chosen tokens, beside requests that ask for none.

    V1 has no others in the batch: there vLLM answers logprobs=3 with these tokens too.
    """
    tokens = [30, 250, 7, 99]
    cases: dict[str, dict[str, Any]] = {
        "token ids": {"logprob_token_ids": tokens},
        "with penalties": {"logprob_token_ids": tokens, "presence_penalty": 1.5},
        **sample({}, {"of the best three": {"logprobs": 3}}),
    }
    folder = tmp_path_factory.mktemp("heads")
    requests = _requests(prompts, cases)
    with compared(llama.path, requests, folder) as comparison:
        comparison.check_alone("token ids")
        comparison.check_mixed()
        for output in comparison.expected["token ids"]:
            assert all(set(tokens) <= set(p) for p in output.outputs[0].logprobs)


@pytest.fixture(scope="module", params=MODES)
def comparison(
    request: pytest.FixtureRequest,
    llama: TinyModel,
    prompts: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Comparison]:
    with compared(
        llama.path,
        _requests(prompts, CASES),
        tmp_path_factory.mktemp("heads"),
        logprobs_mode=request.param,
        max_logprobs=-1,
        # No seeded prompt in pieces: vLLM's V1 can't rewind a CPU generator.
        max_num_batched_tokens=4096,
    ) as comparison:
        yield comparison


def test_mixed(comparison: Comparison) -> None:
    comparison.check_mixed()


def _scores(outputs: list[RequestOutput]) -> list[float]:
    return [
        score.logprob
        for output in outputs
        for position in output.outputs[0].logprobs
        for score in position.values()
    ]


def test_modes_differ(comparison: Comparison) -> None:
    """What is compared above depends on the mode."""
    mode = comparison.llm.llm_engine.model_config.logprobs_mode
    expected = comparison.expected
    assert (max(_scores(expected["of all"])) > 0) == mode.endswith("logits")
    scores = _scores(expected["allowed tokens"])
    num_finite = sum(map(math.isfinite, scores))
    num_allowed = len(ALLOWED) if mode.startswith("processed") else VOCAB_SIZE
    assert num_finite == COUNT * LENGTH * num_allowed


@pytest.mark.parametrize("name", sample(tuple(CASES), ("of the best three",)))
def test_alone(comparison: Comparison, name: str) -> None:
    comparison.check_alone(name)
