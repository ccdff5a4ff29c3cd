# SPDX-License-Identifier: Apache-2.0
"""All parameters on one request, beside others, whatever the scheduler does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, metrics, stats
from tests.engine.support.parameters import (
    TREE,
    Outputs,
    Requests,
    assert_same,
    heads_for,
)
from tests.engine.support.processors import Avoid, AvoidOnV2
from tests.runner import sample, slow_on_v2

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((16, 40), (4, 14))
OPTIONS: dict[str, Any] = {
    "logprobs_mode": "processed_logprobs",
    "logits_processors": [sample(Avoid, AvoidOnV2)],
}


def everything(index: int, text: list[int]) -> SamplingParams:
    """Every parameter that looks at the text before a row, or at the row's place.

    `text` is the greedy text without them.
    """
    often = max(set(text), key=text.count)
    return greedy(
        LENGTH,
        presence_penalty=0.6,
        frequency_penalty=0.4,
        repetition_penalty=1.2,
        bad_words=["e", "ba", "no ", "od"],
        min_tokens=LENGTH // 2,
        stop_token_ids=[often, text[4], text[9]],
        logit_bias={often: -4.0, 77: 1.5},
        allowed_token_ids=[t for t in range(3, 310) if t % 7 != index % 7],
        extra_args={"avoid": 2},
        logprobs=4,
    )


class Reference(NamedTuple):
    requests: Requests
    expected: Outputs
    heads: Path


@pytest.fixture(scope="module")
def reference(
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Reference:
    # The longest prompts: several pieces of 64 tokens.
    pairs = list(zip(prompts, plain, strict=True))
    longest = sorted(pairs, key=lambda pair: len(pair[0]))[-COUNT:]
    cases = {
        "everything": [everything(i, text) for i, (_, text) in enumerate(longest)],
        "logprobs": [greedy(LENGTH, logprobs=1)] * COUNT,
        "penalty": [greedy(LENGTH, frequency_penalty=1.5)] * COUNT,
    }
    requests = Requests.of([prompt for prompt, _ in longest], LENGTH, cases)
    with engine(llama.path, **OPTIONS) as llm:
        expected = requests.run(llm)
    heads = heads_for(
        llama.path, requests.prompts, expected, tmp_path_factory.mktemp("heads")
    )
    return Reference(requests, expected, heads)


def run(llama: TinyModel, reference: Reference, **options: Any) -> dict[str, Any]:
    """Compare a run under `options`; return vLLM's metrics."""
    medusa = {"model": reference.heads, "tree": TREE}
    with engine(llama.path, medusa, **OPTIONS, **options) as llm:
        outputs = reference.requests.run(llm)
        counters = stats(llm)
        values = metrics(llm)
    for name, expected in reference.expected.items():
        assert_same(outputs[name], expected)
    assert counters["accepted"] > 0.5 * counters["trees"]
    assert counters["moved"] > 0
    return values


@pytest.mark.smoke
def test_prefix_caching(llama: TinyModel, reference: Reference) -> None:
    """Alone, then beside others with the whole prompt in the cache."""
    medusa = {"model": reference.heads, "tree": TREE}
    requests, expected = reference.requests, reference.expected
    with engine(llama.path, medusa, enable_prefix_caching=True, **OPTIONS) as llm:
        alone = generate(llm, requests.prompts, requests.cases["everything"])
        counters = stats(llm)
        again = requests.run(llm)
    assert_same(alone, expected["everything"])
    assert counters["accepted"] > 0.5 * counters["trees"]
    for name in expected:
        assert_same(again[name], expected[name])
    assert sum(output.num_cached_tokens for output in again["everything"]) > 0


@slow_on_v2
def test_prompts_in_pieces(llama: TinyModel, reference: Reference) -> None:
    assert max(map(len, reference.requests.prompts)) > 64
    run(llama, reference, max_num_batched_tokens=64)


def test_preemption(llama: TinyModel, reference: Reference) -> None:
    """Too few KV blocks: requests start again with what they had said as a prompt."""
    values = run(llama, reference, num_gpu_blocks_override=sample(28, 18))
    assert values["vllm:num_preemptions"] > 0


def test_parameters_matter(reference: Reference) -> None:
    """Each request's parameters change its text; some end it early."""
    expected = reference.expected
    texts, plain = (
        [output.outputs[0] for output in expected[name]]
        for name in ("everything", "logprobs")
    )
    assert all(
        list(mine.token_ids) != list(theirs.token_ids)
        for mine, theirs in zip(texts, plain, strict=True)
    )
    assert {text.finish_reason for text in texts} == {"stop", "length"}
