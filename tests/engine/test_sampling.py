# SPDX-License-Identifier: Apache-2.0
"""Temperatures, seeds and several completions in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from vllm import LLM, SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import answers
from tests.engine.support.engines import engine, generate, greedy, token_ids
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((40, 24), (12, 12))
# vLLM 0.32 itself fails on a CPU when the prompt of a seeded request comes in pieces:
# it rewinds the request's generator, and CPU generators can't be.
UNCHUNKED = {"max_num_batched_tokens": 4096}


def sampled(seed: int, **options: Any) -> SamplingParams:
    return SamplingParams(
        temperature=1.0, seed=seed, max_tokens=LENGTH, ignore_eos=True, **options
    )


@pytest.fixture(scope="module")
def medusa(llama: TinyModel) -> Iterator[LLM]:
    with engine(
        llama.path, {"model": llama.heads, "tree": "optimal:12"}, **UNCHUNKED
    ) as llm:
        yield llm


def test_mixed_temperatures(
    medusa: LLM, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """Sampled requests in the batch leave greedy ones as they are."""
    params = [
        greedy(LENGTH)
        if index % 2 == 0
        else SamplingParams(
            temperature=0.5 + 0.1 * (index % 7),
            top_k=(0, 5, 20)[index % 3],
            top_p=(1.0, 0.9)[index // 2 % 2],
            seed=index if index % 4 == 1 else None,
            max_tokens=LENGTH,
            ignore_eos=True,
        )
        for index in range(COUNT)
    ]
    texts = token_ids(generate(medusa, prompts[:COUNT], params))
    assert texts[::2] == [text[:LENGTH] for text in plain[:COUNT:2]]
    assert all(len(text) == LENGTH for text in texts)
    differ = [
        a != b[:LENGTH] for a, b in zip(texts[1::2], plain[1:COUNT:2], strict=True)
    ]
    assert sum(differ) > COUNT // 4, "the sampled requests were decoded greedily"


@pytest.mark.smoke
def test_seed_reproduces(medusa: LLM, prompts: list[list[int]]) -> None:
    """The same seed gives the same text alone and in company; another one differs."""
    alone = token_ids(generate(medusa, prompts[:1], sampled(7)))[0]
    others = [sampled(100 + index) for index in range(9)]
    together = token_ids(
        generate(medusa, prompts[:1] * 10, [*others[:5], sampled(7), *others[5:]])
    )
    assert together[5] == alone
    assert len({tuple(text) for text in together}) == 10


def test_several_completions(
    medusa: LLM, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """n > 1: as many texts, distinct when sampled with a seed, and reproducible."""
    (first,), (second,) = (
        answers(generate(medusa, prompts[:1], sampled(3, n=6))) for _ in range(2)
    )
    assert first == second
    assert len({tuple(answer["tokens"]) for answer in first}) == 6
    three = sampled(1, n=3, top_k=1)
    (same,) = answers(generate(medusa, prompts[:1], three))
    assert [answer["tokens"] for answer in same] == [plain[0][:LENGTH]] * 3
