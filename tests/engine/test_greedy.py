# SPDX-License-Identifier: Apache-2.0
"""Greedy text is token for token that of plain vLLM, however the engine is set up."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.conftest import PLAIN_TOKENS, TinyModel
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from tests.runner import sample

pytestmark = pytest.mark.engine

TREE = "optimal:12"
COUNT, LENGTH, LONG = sample((60, 32, 200), (16, 20, 80))


@pytest.mark.parametrize("max_num_seqs", sample([1, 4, 16], [6]))
@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize(
    "chunks",
    [
        # Every prompt is prefilled whole, in a step of its own or with others.
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 512},
        # Tree rows take their share first, prompts come in small pieces beside them.
        {"enable_chunked_prefill": True, "max_num_batched_tokens": 48},
    ],
    ids=["whole", "chunked"],
)
def test_engine_options(
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    max_num_seqs: int,
    prefix_caching: bool,
    chunks: dict[str, Any],
) -> None:
    # One request at a time takes long: it gets fewer prompts.
    count = {1: 12, 4: 32, 16: 80, 6: 18}[max_num_seqs]
    length = PLAIN_TOKENS if max_num_seqs == 16 else PLAIN_TOKENS // 2
    options = dict(chunks)
    if chunks["enable_chunked_prefill"]:
        # A budget below the rows of 16 trees would cut most of them.
        options["max_num_batched_tokens"] += 13 * max_num_seqs
    with engine(
        llama.path,
        {"model": llama.heads, "tree": TREE},
        max_num_seqs=max_num_seqs,
        enable_prefix_caching=prefix_caching,
        **options,
    ) as llm:
        texts = token_ids(generate(llm, prompts[:count], greedy(length)))
        counters = stats(llm)
    assert texts == [text[:length] for text in plain[:count]]
    # Trees were verified, nodes accepted, and some accepted rows had to move.
    assert counters["accepted"] > 0.5 * counters["trees"]
    assert counters["moved"] > 0


@pytest.mark.runner("v2", reason="V1 on a CPU is always synchronous")
def test_synchronous_scheduling(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """The host waits for every step; all other tests of V2 schedule ahead."""
    with engine(
        llama.path, {"model": llama.heads, "tree": TREE}, async_scheduling=False
    ) as llm:
        texts = token_ids(generate(llm, prompts[:COUNT], greedy(LENGTH)))
        assert stats(llm)["moved"] > 0
    assert texts == [text[:LENGTH] for text in plain[:COUNT]]


def test_token_budget_cuts_trees(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """A token budget far below the rows of all trees: many steps verify cut trees."""
    with engine(
        llama.path,
        {"model": llama.heads, "tree": TREE},
        max_num_seqs=8,
        # Three whole trees of 13 rows and a fourth of 6.
        max_num_batched_tokens=45,
        enable_chunked_prefill=True,
    ) as llm:
        texts = token_ids(generate(llm, prompts[:COUNT], greedy(LENGTH)))
        counters = stats(llm)
    assert texts == [text[:LENGTH] for text in plain[:COUNT]]
    assert counters["nodes"] < 12 * counters["trees"], "no tree was cut"
    assert counters["accepted"] > 0


@pytest.mark.parametrize("block_size", sample([32, 128], [32]))
def test_long_context(llama: TinyModel, block_size: int) -> None:
    """Text that crosses many block boundaries, at two block sizes."""
    prompt = [
        [3 + (7 * i) % 300 for i in range(n)] for n in (31, 32, 33, 127, 128, 250)
    ]
    options = {"block_size": block_size, "max_model_len": 512}
    with engine(llama.path, **options) as llm:
        expected = token_ids(generate(llm, prompt, greedy(LONG)))
    with engine(llama.path, {"model": llama.heads, "tree": TREE}, **options) as llm:
        assert token_ids(generate(llm, prompt, greedy(LONG))) == expected
        assert stats(llm)["moved"] > 0
