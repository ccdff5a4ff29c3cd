# SPDX-License-Identifier: Apache-2.0
"""With a seed, Medusa answers what plain vLLM does, at every temperature."""

from __future__ import annotations

from typing import Any

import pytest
from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, stats, token_ids
from tests.engine.support.models import VOCAB_SIZE
from tests.engine.support.prompts import random_prompts
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample(100, 15), 10
"""Prompts at each temperature, and tokens of each answer."""
TEMPERATURES = (0.0, 0.7, 1.0)
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_p": 0.8},
    {"top_k": 5},
    {"min_p": 0.1},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.02},
)
# No prompt in pieces on V1: vLLM can't rewind a CPU generator.
OPTIONS: dict[str, Any] = sample({"max_num_batched_tokens": 4096}, {})


def requests() -> tuple[list[list[int]], list[SamplingParams]]:
    """Every prompt at every temperature, each with one of the filters."""
    prompts = random_prompts(COUNT, VOCAB_SIZE, longest=40, seed=5)
    params = [
        SamplingParams(
            temperature=temperature,
            seed=1000 + index,
            max_tokens=LENGTH,
            ignore_eos=True,
            **FILTERS[index % len(FILTERS)],
        )
        for temperature in TEMPERATURES
        for index in range(COUNT)
    ]
    return prompts * len(TEMPERATURES), params


@pytest.fixture(scope="module")
def expected(llama: TinyModel) -> list[list[int]]:
    """What plain vLLM answers to `requests`."""
    with engine(llama.path, **OPTIONS) as llm:
        return token_ids(generate(llm, *requests()))


def test_text_is_that_of_plain_vllm(
    llama: TinyModel, expected: list[list[int]]
) -> None:
    """Every temperature with every filter, all in one queue."""
    medusa = {"model": llama.heads, "tree": "optimal:8"}
    with engine(llama.path, medusa, **OPTIONS) as llm:
        texts = token_ids(generate(llm, *requests()))
        counters = stats(llm)
    differing = [i for i in range(len(expected)) if texts[i] != expected[i]]
    assert not differing
    # At a temperature, too, drafts are accepted and rows move.
    assert counters["accepted"] > 0.3 * counters["trees"]
    assert counters["moved"] > 0.05 * counters["trees"]


@pytest.mark.runner("v2", reason="a CPU's Model Runner V1 schedules synchronously")
def test_prompts_in_pieces_under_async_scheduling(
    llama: TinyModel, expected: list[list[int]]
) -> None:
    """The scheduler runs one step ahead: base positions are read on the device."""
    prompts, params = requests()
    # Of each temperature above 0.
    chosen = slice(2 * COUNT - 10, 2 * COUNT + 10)
    with engine(
        llama.path,
        {"model": llama.heads, "tree": "optimal:4"},
        async_scheduling=True,
        max_num_batched_tokens=64,
    ) as llm:
        config = llm.llm_engine.vllm_config
        assert config.scheduler_config.async_scheduling
        assert config.use_v2_model_runner
        texts = token_ids(generate(llm, prompts[chosen], params[chosen]))
        counters = stats(llm)
    assert texts == expected[chosen]
    assert counters["accepted"] > 10


def test_another_seed_gives_another_text(
    llama: TinyModel, prompts: list[list[int]]
) -> None:
    """The draws are the seed's: else equal texts above would prove nothing."""
    sampling = [
        SamplingParams(temperature=1.0, seed=seed, max_tokens=LENGTH, ignore_eos=True)
        for seed in (1, 2, 3, 1)
    ]
    with engine(llama.path, {"model": llama.heads, "tree": "optimal:8"}) as llm:
        one, two, three, again = token_ids(generate(llm, prompts[:1] * 4, sampling))
    assert one == again
    assert len({tuple(text) for text in (one, two, three)}) == 3
