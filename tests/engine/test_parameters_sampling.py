# SPDX-License-Identifier: Apache-2.0
"""Temperatures, filters and seeds together with everything that changes logits.

Model Runner V2 keys its noise on seed and position: a seeded text is plain vLLM's own.
V1 draws from a generator in the order of the rows: its text has plain vLLM's law, see
test_parameters_law.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import answers
from tests.engine.support.engines import generate, stats, token_ids
from tests.engine.support.parameters import Comparison, Requests, compared
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((8, 24), (2, 12))
PENALTIES: dict[str, Any] = {
    "presence_penalty": 0.9,
    "frequency_penalty": 0.7,
    "repetition_penalty": 1.2,
}
SAMPLING: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.4},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.15},
    "filters": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "penalties": {"temperature": 0.8, **PENALTIES},
    "words": {
        "bad_words": ["e", "ba", "nd"],
        "logit_bias": {40: -20.0, 77: 2.5},
        "allowed_token_ids": list(range(20, 200)),
        "min_tokens": 7,
        "stop_token_ids": list(range(50, 60)),
    },
    "several completions": {"n": 2, **PENALTIES},
}
UNCHUNKED = {"max_num_batched_tokens": 4096}
"""A seeded prompt in pieces is beyond vLLM's V1 on a CPU: it rewinds the request's
generator, and a CPU generator can't be."""


def seeded(seed: int, **options: Any) -> SamplingParams:
    return SamplingParams(
        **{
            "temperature": 1.0,
            "seed": seed,
            "max_tokens": LENGTH,
            "ignore_eos": True,
            **options,
        }
    )


@pytest.fixture(scope="module")
def requests(prompts: list[list[int]]) -> Requests:
    cases = {
        name: [
            seeded(100 + i, logprobs=3 if i % 2 else None, **options)
            for i in range(COUNT)
        ]
        for name, options in SAMPLING.items()
    }
    return Requests.of(prompts[:COUNT], LENGTH, cases)


@pytest.fixture(scope="module")
def comparison(
    llama: TinyModel, requests: Requests, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Comparison]:
    folder = tmp_path_factory.mktemp("heads")
    with compared(llama.path, requests, folder, **UNCHUNKED) as comparison:
        yield comparison


@pytest.mark.parametrize("name", ["penalties", "words", "several completions"])
def test_alone(comparison: Comparison, name: str) -> None:
    comparison.check_alone(name)
    assert comparison.num_changed(name) > COUNT // 4


def test_mixed(comparison: Comparison) -> None:
    comparison.check_mixed()


@pytest.mark.runner("v1", reason="V2's seeded text is plain vLLM's own")
@pytest.mark.parametrize("name", SAMPLING)
def test_seed_reproduces(comparison: Comparison, name: str) -> None:
    """A seeded text is the same in any company, and another seed gives another one."""
    requests, llm = comparison.requests, comparison.llm
    params = requests.cases[name]
    alone = answers(generate(llm, requests.prompts, params))
    counters = stats(llm)
    assert counters["accepted"] > 0
    assert answers(requests.run(llm)[name]) == alone
    others = [p.clone() for p in params]
    for other in others:
        other.seed += 1000
    again = answers(generate(llm, requests.prompts, others))
    assert sum(a != b for a, b in zip(again, alone, strict=True)) > COUNT // 2


@pytest.mark.runner("v1", reason="V2's seeded text is plain vLLM's own")
def test_one_likely_token(comparison: Comparison, prompts: list[list[int]]) -> None:
    """With top_k=1 the law is a single text: the greedy one with the same penalties."""
    params = [seeded(i, top_k=1, **PENALTIES) for i in range(COUNT)]
    greedy = [seeded(i, **{**PENALTIES, "temperature": 0.0}) for i in range(COUNT)]
    llm = comparison.llm
    texts = token_ids(generate(llm, prompts[:COUNT], params))
    assert texts == token_ids(generate(llm, prompts[:COUNT], greedy))
