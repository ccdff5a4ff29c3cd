# SPDX-License-Identifier: Apache-2.0
"""vLLM's own speculative metrics count what happened."""

from __future__ import annotations

import pytest

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import step_ends
from tests.engine.support.engines import engine, generate, greedy, metrics, stats
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((40, 40), (12, 24))
PREFIX = "vllm:spec_decode_num_"


@pytest.mark.parametrize("asynchronous", sample([False], [False, True]))
def test_counts(llama: TinyModel, prompts: list[list[int]], asynchronous: bool) -> None:
    """One run on metrics, steps and the runner's own counters."""
    with engine(
        llama.path,
        {"model": llama.heads, "tree": "optimal:12"},
        max_num_seqs=8,
        async_scheduling=asynchronous,
    ) as llm:
        ends = step_ends(llm, prompts[:COUNT], greedy(LENGTH))
        values = metrics(llm)
        counters = stats(llm)
    # Scheduled asynchronously, a request that ends has one more step under way, whose
    # tree the runner verifies and vLLM forgets.
    late = counters["trees"] - values[PREFIX + "drafts"]
    assert 0 <= late <= (len(ends) if asynchronous else 0)
    if late == 0:
        assert values[PREFIX + "draft_tokens"] == counters["nodes"]
        assert values[PREFIX + "accepted_tokens"] == counters["accepted"]
    assert 0 <= counters["nodes"] - values[PREFIX + "draft_tokens"] <= 12 * late
    assert 0 <= counters["accepted"] - values[PREFIX + "accepted_tokens"] <= 4 * late

    # A request's first token comes from its prompt, each later step is one tree. The
    # last step alone may accept more than the request still wanted.
    trees = sum(len(e) - 1 for e in ends)
    emitted = sum(e[-1] - e[0] for e in ends)
    assert values[PREFIX + "drafts"] == trees
    surplus = values[PREFIX + "accepted_tokens"] + trees - emitted
    assert 0 <= surplus < 4 * len(ends)

    per_position = values[PREFIX + "accepted_tokens_per_pos"]
    assert sum(per_position) == values[PREFIX + "accepted_tokens"]
    # Position i counts trees in which more than i nodes were accepted.
    assert per_position == sorted(per_position, reverse=True)
    assert 0 < per_position[0] < trees
    assert values["vllm:generation_tokens"] == COUNT * LENGTH


def test_plain_engine_has_none(llama: TinyModel, prompts: list[list[int]]) -> None:
    with engine(llama.path) as llm:
        generate(llm, prompts[:4], greedy(8))
        assert not any(name.startswith(PREFIX) for name in metrics(llm))
