# SPDX-License-Identifier: Apache-2.0
"""Requests that end, often in the middle of an accepted path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from transformers import AutoTokenizer
from vllm import LLM, SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import answers, step_ends
from tests.engine.support.engines import engine, generate, greedy, token_ids
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT = sample(40, 12)
LENGTH = sample(40, 28)


class Reference(NamedTuple):
    """What plain vLLM says, taken before the engine with Medusa starts.

    `near_limit` is a prompt and its greedy text, together as long as the engine allows:
    any end of it continues as the text does, so it serves for every room.
    """

    stop_strings: list[SamplingParams]
    stopped: list[list[dict[str, Any]]]
    near_limit: list[int]


@pytest.fixture(scope="module")
def reference(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> Reference:
    tokenizer = AutoTokenizer.from_pretrained(llama.path)
    stop_strings = []
    for index, text in enumerate(plain[:COUNT]):
        start = 4 + index % 16
        # Two tokens may be half a character each; then another stop is as good.
        piece = tokenizer.decode(text[start : start + 2]).replace("\ufffd", "") or "a"
        include = index % 2 == 0
        stop_strings.append(
            greedy(LENGTH, stop=[piece], include_stop_str_in_output=include)
        )
    prompt = max(prompts, key=len)[:100]
    with engine(llama.path) as llm:
        stopped = answers(generate(llm, prompts[:COUNT], stop_strings))
        (text,) = token_ids(generate(llm, [prompt], greedy(1000)))
        assert len(prompt) + len(text) == llm.llm_engine.model_config.max_model_len
    return Reference(stop_strings, stopped, prompt + text)


@pytest.fixture(scope="module")
def medusa(llama: TinyModel, reference: Reference) -> Iterator[LLM]:
    with engine(llama.path, {"model": llama.heads, "tree": "optimal:12"}) as llm:
        yield llm


@pytest.fixture(scope="module")
def ends(medusa: LLM, prompts: list[list[int]]) -> list[list[int]]:
    """Where the steps of each request end if nothing stops it before `LENGTH`."""
    return step_ends(medusa, prompts[:COUNT], greedy(LENGTH))


def test_max_tokens(
    medusa: LLM,
    prompts: list[list[int]],
    plain: list[list[int]],
    ends: list[list[int]],
) -> None:
    """Every limit from 1 to 12, over all requests."""
    limits = [1 + i % 12 for i in range(COUNT)] + [12 - i % 12 for i in range(COUNT)]
    outputs = generate(medusa, prompts[:COUNT] * 2, [greedy(limit) for limit in limits])
    assert token_ids(outputs) == [
        text[:limit] for text, limit in zip(plain[:COUNT] * 2, limits, strict=True)
    ]
    assert {output.outputs[0].finish_reason for output in outputs} == {"length"}
    inside = [limit not in e for limit, e in zip(limits, ends * 2, strict=True)]
    assert sum(inside) > COUNT // 4, "hardly any limit lies inside an accepted path"


def test_stop_token(
    medusa: LLM,
    prompts: list[list[int]],
    plain: list[list[int]],
    ends: list[list[int]],
) -> None:
    """A token of the text itself is the stop token; the text ends with it."""
    stops, expected, inside = [], [], 0
    for index, text in enumerate(plain[:COUNT]):
        stop = text[5 + index % 20]
        end = text.index(stop) + 1
        stops.append(greedy(LENGTH, stop_token_ids=[stop]))
        expected.append(text[:end])
        inside += end not in ends[index]
    outputs = generate(medusa, prompts[:COUNT], stops)
    assert token_ids(outputs) == expected
    for output, text in zip(outputs, expected, strict=True):
        assert output.outputs[0].finish_reason == "stop"
        assert output.outputs[0].stop_reason == text[-1]
    assert inside > COUNT // 8, "hardly any stop token lies inside an accepted path"


def test_stop_string(
    medusa: LLM, prompts: list[list[int]], reference: Reference
) -> None:
    """A piece of the text is the stop string, across tokens too."""
    outputs = generate(medusa, prompts[:COUNT], reference.stop_strings)
    assert answers(outputs) == reference.stopped
    reasons = [answer["finish_reason"] for (answer,) in reference.stopped]
    assert reasons.count("stop") > COUNT // 2


@pytest.mark.parametrize("room", sample(range(1, 16), (1, 2, 5, 13, 14)))
def test_max_model_len(medusa: LLM, reference: Reference, room: int) -> None:
    """A prompt that leaves `room` tokens before the engine's limit."""
    limit = medusa.llm_engine.model_config.max_model_len
    prompt = reference.near_limit[: limit - room]
    (output,) = generate(medusa, [prompt], greedy(100))
    assert output.outputs[0].finish_reason == "length"
    assert list(output.outputs[0].token_ids) == reference.near_limit[limit - room :]
