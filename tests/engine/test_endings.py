# SPDX-License-Identifier: Apache-2.0
"""Requests that end, often in the middle of an accepted path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm import LLM, SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import answers, step_ends
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from tests.engine.support.models import EOS

pytestmark = pytest.mark.engine

COUNT = 40


@pytest.fixture(scope="module")
def medusa(llama: TinyModel) -> Iterator[LLM]:
    with engine(llama.path, {"model": llama.heads, "tree": "optimal:12"}) as llm:
        yield llm


@pytest.fixture(scope="module")
def ends(medusa: LLM, prompts: list[list[int]]) -> list[list[int]]:
    """Where the steps of each request end if nothing stops it before 40 tokens."""
    return step_ends(medusa, prompts[:COUNT], greedy(40))


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
    assert sum(inside) > 10, "hardly any limit lies inside an accepted path"


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
        stops.append(greedy(40, stop_token_ids=[stop]))
        expected.append(text[:end])
        inside += end not in ends[index]
    outputs = generate(medusa, prompts[:COUNT], stops)
    assert token_ids(outputs) == expected
    for output, text in zip(outputs, expected, strict=True):
        assert output.outputs[0].finish_reason == "stop"
        assert output.outputs[0].stop_reason == text[-1]
    assert inside > 5, "hardly any stop token lies inside an accepted path"


def test_stop_string(
    llama: TinyModel, medusa: LLM, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """A piece of the text is the stop string, across tokens too."""
    tokenizer = AutoTokenizer.from_pretrained(llama.path)
    params = []
    for index, text in enumerate(plain[:COUNT]):
        start = 4 + index % 16
        # Two tokens may be half a character each; then another stop is as good.
        piece = tokenizer.decode(text[start : start + 2]).replace("\ufffd", "") or "a"
        include = index % 2 == 0
        params.append(greedy(40, stop=[piece], include_stop_str_in_output=include))
    outputs = answers(generate(medusa, prompts[:COUNT], params))
    with engine(llama.path) as llm:
        expected = answers(generate(llm, prompts[:COUNT], params))
    assert outputs == expected
    stopped = [a for (a,) in expected if a["finish_reason"] == "stop"]
    assert len(stopped) > COUNT // 2


def test_end_of_text(
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    tmp_path: Path,
) -> None:
    """A model that says EOS where `llama` says one of its most frequent tokens."""
    frequent = torch.tensor(plain[:COUNT]).flatten().bincount().argmax()
    model = AutoModelForCausalLM.from_pretrained(llama.path, dtype=torch.float32)
    with torch.no_grad():
        head = model.lm_head.weight
        head[EOS] = 1.01 * head[frequent]
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(llama.path).save_pretrained(tmp_path)
    params = SamplingParams(temperature=0.0, max_tokens=40)
    with engine(tmp_path) as llm:
        expected = answers(generate(llm, prompts[:COUNT], params))
    with engine(tmp_path, {"model": llama.heads, "tree": "optimal:12"}) as llm:
        assert answers(generate(llm, prompts[:COUNT], params)) == expected
        assert stats(llm)["accepted"] > 0
    by_eos = [a for (a,) in expected if a["finish_reason"] == "stop"]
    assert len(by_eos) > 5
    assert all(a["tokens"][-1] == EOS for a in by_eos)


@pytest.mark.parametrize("room", range(1, 16))
def test_max_model_len(medusa: LLM, plain_near_limit: list[int], room: int) -> None:
    """A prompt that leaves `room` tokens before the engine's limit."""
    limit = medusa.llm_engine.model_config.max_model_len
    prompt = plain_near_limit[: limit - room]
    (output,) = generate(medusa, [prompt], greedy(100))
    assert output.outputs[0].finish_reason == "length"
    assert list(output.outputs[0].token_ids) == plain_near_limit[limit - room : limit]


@pytest.fixture(scope="module")
def plain_near_limit(llama: TinyModel, prompts: list[list[int]]) -> list[int]:
    """A prompt and its plain greedy text, together as long as the engine allows.

    Any end of it continues as the text does, so it serves for every room.
    """
    prompt = max(prompts, key=len)[:100]
    with engine(llama.path) as llm:
        (text,) = token_ids(generate(llm, [prompt], greedy(1000)))
        assert len(prompt) + len(text) == llm.llm_engine.model_config.max_model_len
    return prompt + text
