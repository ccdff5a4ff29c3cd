# SPDX-License-Identifier: Apache-2.0
"""Full graphs of verification batches and of the heads give the same text.

The graph primitive is simulated (`tests.engine.support.replayed`); everything around
it is vLLM's and ours: which graphs are captured, how a batch is padded and dispatched,
and that a replay reads nothing but the buffers of the capture.
"""

from __future__ import annotations

from typing import Any

import pytest
from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from tests.engine.support.replayed import replayed_graphs

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v2", reason="V1 captures no graphs on a CPU"),
]


def test_text_is_unchanged(llama: TinyModel, prompts: list[list[int]]) -> None:
    """Batches of 5 down to 1 requests are padded to graphs of 1, 2, 4 and 8."""
    medusa = {
        "model": llama.heads,
        "tree": "optimal:6",
        "attention": "triton",
        "num_speculative_tokens_per_batch_size": [[1, 2, 6], [3, 16, 3]],
    }
    # Requests end one after the other: batches of 5, 4, … 1.
    params = [greedy(length) for length in (48, 40, 20, 14, 8)]
    with engine(llama.path) as llm:
        plain = token_ids(generate(llm, prompts[:5], params))
    with (
        engine(llama.path, medusa) as llm,
        replayed_graphs(llm, [7, 14, 16, 32, 56]) as graphs,
    ):
        text = token_ids(generate(llm, prompts[:5], params))
        counters = stats(llm)
    assert text == plain
    assert counters["accepted"] > 5
    # 3 nodes for 3 to 16 requests, 6 for fewer; none that the table can't choose.
    assert set(graphs["model"]) == {(1, 7), (2, 7), (4, 4), (8, 4), (14, 4)}
    assert set(graphs["heads"]) == {(6, 7), (3, 7), (3, 14), (3, 16)}
    replays = {key: graph.replays for key, graph in graphs["model"].items()}
    for size in ((1, 7), (2, 7), (4, 4), (8, 4)):
        assert replays[size] > 0
    assert replays[14, 4] == 0
    assert sum(graph.replays for graph in graphs["heads"].values()) > 5


@pytest.mark.parametrize(
    "options",
    [{"tree": "optimal:6", "acceptance": "rejection"}, {"tree": "beam:2x3"}],
    ids=lambda options: options["tree"],
)
def test_candidates_by_request(
    llama: TinyModel, prompts: list[list[int]], options: dict[str, Any]
) -> None:
    """Noise, temperatures, places in the request state and trees reach the graph of
    the heads through buffers; batches of 3 are padded to 4."""
    params = [
        SamplingParams(temperature=0.9, seed=index, max_tokens=length, ignore_eos=True)
        for index, length in enumerate((20, 12, 8))
    ]
    medusa = {"model": llama.heads, **options, "attention": "triton"}
    with engine(llama.path, medusa) as llm:
        eager = token_ids(generate(llm, prompts[:3], params))
        expected = stats(llm)
    with engine(llama.path, medusa) as llm, replayed_graphs(llm, [7, 14, 28]) as graphs:
        assert token_ids(generate(llm, prompts[:3], params)) == eager
        # The same drafts, not only the same text.
        assert stats(llm) == expected
    assert expected["accepted"] > 0
    replays = {size: graph.replays for (_, size), graph in graphs["heads"].items()}
    assert sum(replays.values()) > 5
