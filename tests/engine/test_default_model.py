# SPDX-License-Identifier: Apache-2.0
"""The default model with the shipped heads: 200 prompts, token for token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.engine.support.engines import (
    engine,
    generate,
    greedy,
    metrics,
    stats,
    token_ids,
)
from tests.engine.support.prompts import chat_prompts
from tests.runner import sample
from vllm_medusa.default_model import heads_path, model_path

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1100)]

COUNT, LENGTH = sample((48, 16), (6, 10))
OPTIONS: dict[str, Any] = {
    "max_model_len": 1024,
    "kv_cache_memory_bytes": 768 << 20,
    "block_size": 128,
    "max_num_batched_tokens": 1024,
}


@pytest.fixture(scope="module")
def model() -> Path:
    return model_path()


@pytest.fixture(scope="module")
def chats(model: Path) -> list[list[int]]:
    return chat_prompts(AutoTokenizer.from_pretrained(model), COUNT)


@pytest.fixture(scope="module")
def expected(model: Path, chats: list[list[int]]) -> list[list[int]]:
    """Plain vLLM's answers, 16 requests at a time."""
    with engine(model, max_num_seqs=16, **OPTIONS) as llm:
        return token_ids(generate(llm, chats, greedy(LENGTH)))


def test_prompts_differ_in_length(chats: list[list[int]]) -> None:
    lengths = sorted(map(len, chats))
    assert len({tuple(chat) for chat in chats}) == COUNT
    assert lengths[0] < 50
    assert lengths[-1] > sample(500, 150)
    assert len(set(lengths)) > COUNT // 8


# Every pair of concurrency and options over its own slice of the prompts: start, step.
CONFIGURATIONS: dict[str, tuple[int, bool, int | None, slice, str | None]] = {
    # concurrency, prefix caching, token budget if chunked, prompts, tree
    "16 cached chunked": (16, True, 160, slice(0, None, 2), None),
    "16": (16, False, None, slice(0, None, 5), "optimal:16"),
    "16 cached": (16, True, None, slice(1, None, 5), None),
    "16 chunked": (16, False, 160, slice(2, None, 5), None),
    "4": (4, False, None, slice(3, None, 6), None),
    "4 cached": (4, True, None, slice(4, None, 6), None),
    "4 chunked": (4, False, 64, slice(5, None, 6), "optimal:8"),
    "4 cached chunked": (4, True, 64, slice(0, None, sample(6, 1)), None),
    "1": (1, False, None, slice(0, None, 12), None),
    "1 cached": (1, True, None, slice(1, None, 6), "chain"),
    "1 chunked": (1, False, 48, slice(2, None, 12), None),
    "1 cached chunked": (1, True, 48, slice(0, None, 12), "optimal:16"),
}


QUICK = sample(
    ("16 cached chunked", "16", "4 cached chunked", "1 cached"), ("4 cached chunked",)
)


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in CONFIGURATIONS
    ],
)
def test_greedy_text_is_equal(
    model: Path, chats: list[list[int]], expected: list[list[int]], name: str
) -> None:
    concurrency, caching, budget, chosen, tree = CONFIGURATIONS[name]
    options = {
        **OPTIONS,
        "max_num_seqs": concurrency,
        "enable_prefix_caching": caching,
        "enable_chunked_prefill": budget is not None,
    }
    if budget is not None:
        options["max_num_batched_tokens"] = budget
    # The table by batch size would switch trees off at 16 requests.
    medusa: dict[str, Any] = {
        "model": heads_path(),
        "num_speculative_tokens_per_batch_size": None,
    }
    if tree is not None:
        medusa["tree"] = tree
    with engine(model, medusa, **options) as llm:
        texts = token_ids(generate(llm, chats[chosen], greedy(LENGTH)))
        counters = stats(llm)
        accepted = metrics(llm)["vllm:spec_decode_num_accepted_tokens"]
    differing = [
        index
        for index, mine, plain in zip(
            range(COUNT)[chosen], texts, expected[chosen], strict=True
        )
        if mine != plain
    ]
    assert not differing
    # Scheduled asynchronously, requests that end have a step more under way.
    late = sample(0, counters["accepted"] - accepted)
    assert 0 <= late <= 4 * len(texts)
    assert accepted + late == counters["accepted"] > 0.2 * counters["trees"]


@pytest.mark.runner("v1", reason="a vocabulary of 49,152 takes long in the interpreter")
def test_default_settings(
    model: Path, chats: list[list[int]], expected: list[list[int]]
) -> None:
    """As a user has it: tree and batch table from beside the heads."""
    with engine(model, {"model": "default"}, **OPTIONS) as llm:
        texts = []
        for start, load in ((0, 1), (1, 3), (4, 9)):
            batch = chats[start : start + load]
            texts += token_ids(generate(llm, batch, greedy(LENGTH)))
        assert stats(llm)["accepted"] > 0
    assert texts == expected[:13]
