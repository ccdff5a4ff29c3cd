# SPDX-License-Identifier: Apache-2.0
"""Tree attention in two parts, inside an engine: greedy text is plain vLLM's."""

from __future__ import annotations

import pytest
import torch

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from vllm_medusa.attention import tree_layers
from vllm_medusa.attention.cascade import CascadeTreeAttention
from vllm_medusa.attention.layer_facts import LayerFacts
from vllm_medusa.attention.prefix_reference import ReferencePrefix

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v2", reason="V1 has the PyTorch kernel alone"),
]

COUNT, LENGTH = 6, 16


def test_greedy(
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The prefix in PyTorch; the tree part by its kernel, prepared by the builder."""
    made: list[CascadeTreeAttention] = []

    def make(
        self: tree_layers.TreeAttentions, layer: LayerFacts
    ) -> CascadeTreeAttention:
        if not made:
            cpu = torch.device("cpu")
            made.append(CascadeTreeAttention(ReferencePrefix(), 4, cpu))
        return made[0]

    monkeypatch.setattr(tree_layers.TreeAttentions, "of", make)
    with engine(
        llama.path, {"model": llama.heads, "tree": "optimal:12"}, max_num_seqs=4
    ) as llm:
        texts = token_ids(generate(llm, prompts[:COUNT], greedy(LENGTH)))
        counters = stats(llm)
    assert texts == [text[:LENGTH] for text in plain[:COUNT]]
    assert made, "no layer was connected"
    assert counters["accepted"] > 0.5 * counters["trees"]
