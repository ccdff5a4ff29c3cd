# SPDX-License-Identifier: Apache-2.0
"""With a seed, Model Runner V2 writes the same text with a tree as without one.

Its sampler keys the noise on (seed, position, token), so a draw at a row of the tree
is the draw of plain decoding, whatever else is in the batch.
"""

from __future__ import annotations

import pytest
from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.asynchronous import async_scheduling
from tests.engine.support.engines import engine, generate, stats, token_ids
from tests.engine.support.models import VOCAB_SIZE
from tests.engine.support.prompts import random_prompts

pytestmark = pytest.mark.runner("v2", reason="V1 draws from a stream, row after row")

TREE = "optimal:4"
FILTERS = (
    {},
    {"top_p": 0.8},
    {"top_k": 20},
    {"min_p": 0.02},
    {"top_p": 0.9, "top_k": 40, "min_p": 0.01},
)


def requests() -> tuple[list[list[int]], list[SamplingParams]]:
    """100 prompts at each of three temperatures, with every filter among them."""
    prompts = random_prompts(100, VOCAB_SIZE, longest=40) * 3
    params = [
        SamplingParams(
            temperature=temperature,
            seed=1000 + index,
            max_tokens=6,
            ignore_eos=True,
            **FILTERS[index % len(FILTERS)],
        )
        for temperature in (0.0, 0.7, 1.0)
        for index in range(100)
    ]
    return prompts, params


@pytest.fixture(scope="module")
def plain_text(llama: TinyModel) -> list[list[int]]:
    with engine(llama.path) as llm:
        return token_ids(generate(llm, *requests()))


def test_every_temperature_and_filter(
    llama: TinyModel, plain_text: list[list[int]]
) -> None:
    with engine(llama.path, {"model": llama.heads, "tree": TREE}) as llm:
        text = token_ids(generate(llm, *requests()))
        counters = stats(llm)
    assert text == plain_text
    # All had a tree, and trees were of use: also beyond the first depth.
    assert counters["without_tree"] == {}
    assert counters["accepted"] > 100
    assert counters["moved"] > 10


def test_async_scheduling(llama: TinyModel, plain_text: list[list[int]]) -> None:
    """The scheduler runs one step ahead: base positions are read on the device."""
    prompts, params = requests()
    chosen = slice(180, 240)
    with (
        async_scheduling(),
        engine(
            llama.path,
            {"model": llama.heads, "tree": TREE},
            async_scheduling=True,
            max_num_batched_tokens=64,
        ) as llm,
    ):
        config = llm.llm_engine.vllm_config
        assert config.scheduler_config.async_scheduling
        assert config.use_v2_model_runner
        text = token_ids(generate(llm, prompts[chosen], params[chosen]))
        counters = stats(llm)
    assert text == plain_text[chosen]
    assert counters["accepted"] > 20
