# SPDX-License-Identifier: Apache-2.0
"""An engine with rejection acceptance: candidates are drawn from the heads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vllm import LLM, SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from tests.engine.support.parameters import TREE
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((24, 24), (4, 12))


@pytest.fixture(scope="module")
def medusa(llama: TinyModel) -> Iterator[LLM]:
    options = {"model": llama.heads, "tree": TREE, "acceptance": "rejection"}
    # No seeded prompt in pieces: vLLM's V1 can't rewind a CPU generator.
    with engine(llama.path, options, max_num_batched_tokens=4096) as llm:
        yield llm


def drawn(seed: int, temperature: float = 1.0) -> SamplingParams:
    return SamplingParams(
        temperature=temperature, seed=seed, max_tokens=LENGTH, ignore_eos=True
    )


def test_greedy_text_is_that_of_plain_vllm(
    medusa: LLM, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """Alone, and beside requests whose candidates are drawn."""
    expected = [text[:LENGTH] for text in plain[:COUNT]]
    before = stats(medusa)
    alone = token_ids(generate(medusa, prompts[:COUNT], greedy(LENGTH)))
    assert alone == expected
    assert stats(medusa)["accepted"] > before["accepted"]
    params = [
        kind
        for i in range(COUNT)
        for kind in (greedy(LENGTH), drawn(i, 0.5 * (i % 3 + 1)))
    ]
    chosen = [prompt for prompt in prompts[:COUNT] for _ in range(2)]
    texts = token_ids(generate(medusa, chosen, params))
    assert texts[::2] == expected
    assert texts[1::2] != expected


def test_seed_reproduces(medusa: LLM, prompts: list[list[int]]) -> None:
    """The same seed gives the same text in any company; drafts and coins are its."""
    before = stats(medusa)
    (alone,) = token_ids(generate(medusa, prompts[:1], drawn(7)))
    counters = stats(medusa)
    assert counters["trees"] > before["trees"]
    others = [drawn(100 + index) for index in range(6)]
    params = [*others[:3], drawn(7), *others[3:]]
    together = token_ids(generate(medusa, prompts[:1] * 7, params))
    assert together[3] == alone
    assert len({tuple(text) for text in together}) == 7
    assert stats(medusa)["accepted"] > counters["accepted"]
