# SPDX-License-Identifier: Apache-2.0
"""Requests that join a running batch with a single token to compute.

vLLM's scheduler pads them to the size of a tree with placeholders: a prompt of one
token, or one whose other tokens are in the prefix cache. A placeholder is no draft.
"""

from __future__ import annotations

from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import BLOCK_SIZE, engine, greedy
from tests.runner import sample, slow_on_v2

pytestmark = pytest.mark.engine

LENGTH = 12
ENGINES: dict[str, dict[str, Any]] = {
    "tree": {"tree": [[0], [1], [0, 0]]},
    "beam": {"tree": "beam:2x2"},
    "rejection": {"tree": [[0], [1], [0, 0]], "acceptance": "rejection"},
    "typical": {"tree": [[0], [1], [0, 0]], "acceptance": "typical"},
}


def join(llm: LLM, prompts: list[list[int]], params: Any) -> dict[str, list[int]]:
    """Answer the first prompt, then the others beside it while it is running."""
    llm_engine = llm.llm_engine
    llm_engine.add_request("first", {"prompt_token_ids": prompts[0]}, params(0))
    for _ in range(3):
        llm_engine.step()
    for index, prompt in enumerate(prompts[1:], start=1):
        name = f"joins-{index}"
        llm_engine.add_request(name, {"prompt_token_ids": prompt}, params(index))
    texts = {}
    while llm_engine.has_unfinished_requests():
        for output in llm_engine.step():
            if output.finished:
                texts[output.request_id] = list(output.outputs[0].token_ids)
    return texts


@pytest.fixture(scope="module")
def joining() -> list[list[int]]:
    """The first is running when one of a single token comes, and one of which all but
    the last token is in the prefix cache by then."""
    cached = [(7 * i) % 90 + 3 for i in range(2 * BLOCK_SIZE + 1)]
    return [cached, [9], cached]


def answer(index: int) -> SamplingParams:
    """Greedily; the middle one within a grammar, whose masks follow the drafts."""
    if index != 1:
        return greedy(2 * LENGTH if index == 0 else LENGTH)
    grammar = StructuredOutputsParams(regex="[a-z ]{4,30}")
    return SamplingParams(temperature=0.0, max_tokens=8, structured_outputs=grammar)


@pytest.fixture(scope="module")
def expected(llama: TinyModel, joining: list[list[int]]) -> dict[str, list[int]]:
    with engine(llama.path) as llm:
        return join(llm, joining, answer)


@pytest.mark.parametrize("name", ENGINES)
def test_greedy(
    name: str,
    llama: TinyModel,
    joining: list[list[int]],
    expected: dict[str, list[int]],
) -> None:
    with engine(llama.path, {"model": llama.heads, **ENGINES[name]}) as llm:
        assert join(llm, joining, answer) == expected


@pytest.mark.parametrize(
    "name", ["rejection", pytest.param("typical", marks=slow_on_v2)]
)
def test_sampling_is_repeatable(
    name: str, llama: TinyModel, joining: list[list[int]]
) -> None:
    def params(index: int) -> SamplingParams:
        return SamplingParams(
            temperature=1.0, seed=index, max_tokens=LENGTH, ignore_eos=True
        )

    count = sample(4, 1)
    prompts = joining + joining[1:] * (count - 1)
    # vLLM can't rewind a generator on a CPU.
    options = {"max_num_batched_tokens": 4096}
    texts = []
    for _ in range(2):
        medusa = {"model": llama.heads, **ENGINES[name]}
        with engine(llama.path, medusa, **options) as llm:
            texts.append(join(llm, prompts, params))
    assert texts[0] == texts[1]
    assert all(len(text) == LENGTH for text in texts[0].values())
