# SPDX-License-Identifier: Apache-2.0
"""Every kind of tree, and the options that cut trees or heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import (
    engine,
    generate,
    greedy,
    metrics,
    stats,
    token_ids,
)
from tests.engine.support.heads import save_fitted
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((48, 32), (12, 20))

TREES: dict[str, tuple[dict[str, Any], int]] = {
    # options, number of nodes
    "chain": ({"tree": "chain"}, 4),
    "one node": ({"tree": "chain:1"}, 1),
    "cartesian": ({"tree": "1x3x2"}, 3 + 6),
    "wide": ({"tree": [[rank] for rank in range(10)]}, 10),
    "published": ({"tree": "mc_sim_7b_63"}, 63),
    "optimal": ({"tree": "optimal:24"}, 24),
    "inline text": ({"tree": "[[0], [1], [0, 0], [1, 2], [0, 0, 1]]"}, 5),
    "by accuracies": ({}, 0),
    "two heads": ({"tree": "3x2", "num_heads": 2}, 3 + 6),
    "first nodes": ({"tree": "mc_sim_7b_63", "num_speculative_tokens": 7}, 7),
}


@pytest.mark.parametrize("name", sample(TREES, ("chain", "published", "first nodes")))
def test_tree(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]], name: str
) -> None:
    options, num_nodes = TREES[name]
    with engine(
        llama.path,
        {"model": llama.heads, **options},
        max_num_seqs=8,
        # Else the runner verifies a tree more of each request that ends.
        async_scheduling=False,
    ) as llm:
        texts = token_ids(generate(llm, prompts[:COUNT], greedy(LENGTH)))
        counters = stats(llm)
        nodes = metrics(llm)["vllm:spec_decode_num_draft_tokens"]
    assert texts == [text[:LENGTH] for text in plain[:COUNT]]
    assert counters["accepted"] > 0.3 * counters["trees"]
    assert counters["nodes"] == nodes
    if num_nodes:
        # Only the last trees before max_tokens may be cut.
        assert 0.7 * num_nodes < counters["nodes"] / counters["trees"] <= num_nodes
    if name in ("chain", "one node"):
        assert counters["moved"] == 0, "a chain's rows lie in place"
    else:
        assert counters["moved"] > 0


@pytest.mark.runner("v1", reason="the heads and their trees are the same on V2")
def test_siblings_accept_more(llama: TinyModel, prompts: list[list[int]]) -> None:
    """Second and third guesses are accepted too: a wide tree beats its first branch."""
    tokens_per_step = []
    for tree in ("chain:1", "3"):
        with engine(llama.path, {"model": llama.heads, "tree": tree}) as llm:
            generate(llm, prompts[:COUNT], greedy(LENGTH))
            counters = stats(llm)
        tokens_per_step.append(1 + counters["accepted"] / counters["trees"])
    one, three = tokens_per_step
    assert three > one + 0.1


@pytest.mark.runner("v1", reason="the heads and their trees are the same on V2")
def test_draft_vocabulary(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]], tmp_path: Path
) -> None:
    """Heads that guess over part of the vocabulary, and over part of that part."""
    heads = save_fitted(llama.fitted, tmp_path / "heads", draft_vocab=250)
    accepted = {}
    for draft_vocab in (None, 125):
        medusa: dict[str, Any] = {"model": heads, "tree": "optimal:8"}
        if draft_vocab is not None:
            medusa["draft_vocab"] = draft_vocab
        with engine(llama.path, medusa) as llm:
            texts = token_ids(generate(llm, prompts[:COUNT], greedy(LENGTH)))
            accepted[draft_vocab] = stats(llm)["accepted"]
        assert texts == [text[:LENGTH] for text in plain[:COUNT]]
    assert accepted[None] > accepted[125] > 0, "fewer tokens must guess less"


TABLE = [[1, 2, 8], [3, 5, 3], [6, 16, 0]]


@pytest.mark.smoke
def test_batch_table(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """Nodes by the number of running requests, none at all under high load."""
    nodes_per_tree = {}
    medusa = {
        "model": llama.heads,
        "tree": "optimal:8",
        "num_speculative_tokens_per_batch_size": TABLE,
    }
    with engine(llama.path, medusa) as llm:
        before = stats(llm)
        for load in (1, 4, 16):
            texts = []
            for start in range(0, COUNT, load):
                batch = prompts[start : min(start + load, COUNT)]
                texts += token_ids(generate(llm, batch, greedy(LENGTH)))
            assert texts == [text[:LENGTH] for text in plain[:COUNT]]
            after = stats(llm)
            trees = after["trees"] - before["trees"]
            nodes = after["nodes"] - before["nodes"]
            nodes_per_tree[load] = nodes / trees if trees else 0
            before = after
    assert 6 < nodes_per_tree[1] <= 8
    assert 2 < nodes_per_tree[4] < 6
    assert nodes_per_tree[16] == 0


def test_load_rises_and_falls(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """Requests of many lengths together: the load passes every row of the table."""
    lengths = [4 + sample(4, 2) * (i % 15) for i in range(sample(32, 20))]
    medusa = {
        "model": llama.heads,
        "tree": "optimal:8",
        "num_speculative_tokens_per_batch_size": TABLE,
    }
    with engine(llama.path, medusa, max_num_seqs=16) as llm:
        params = [greedy(length) for length in lengths]
        texts = token_ids(generate(llm, prompts[: len(lengths)], params))
        assert stats(llm)["trees"] > 0
    assert texts == [
        text[:length] for text, length in zip(plain, lengths, strict=False)
    ]
