# SPDX-License-Identifier: Apache-2.0
"""Trees that differ from request to request and from step to step.

The engine takes `parents` from the proposer; attention, positions, verification and
the K/V move follow it.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from vllm.sampling_params import StructuredOutputsParams

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from tests.runner import sample
from vllm_medusa import propose
from vllm_medusa.propose import MedusaProposer, Proposal
from vllm_medusa.runner.v2 import speculator
from vllm_medusa.tree import TokenTree

pytestmark = pytest.mark.engine

NUM_NODES, MAX_TOKENS = 6, 16
COUNT = sample(24, 6)
TREES = [
    TokenTree.from_paths(paths)
    for paths in (
        [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0], [1], [2]],
        [[0], [1], [2], [3], [4], [5]],
        [[0], [1], [1, 0], [0, 0], [0, 1], [1, 0, 0]],
        [[1], [0], [0, 0], [0, 0, 0], [1, 0], [1, 1]],
    )
]


class ChangingProposer(MedusaProposer):
    """Gives every request another tree in every step."""

    has_fixed_tree = False
    _steps = count()

    def propose(self, hidden: torch.Tensor, num_nodes: int, *_: Any) -> Proposal:
        step = next(self._steps)
        guesses = self.heads.best_tokens(hidden, 4, 6)
        tokens, parents = [], []
        for index, guess in enumerate(guesses):
            tree = TREES[(step + index) % len(TREES)].truncate(num_nodes)
            heads = torch.tensor(tree.depths[1:]) - 1
            tokens.append(guess[heads, torch.tensor(tree.ranks[1:])])
            parents.append(torch.tensor((0, *tree.parents[1:]), dtype=torch.int32))
        return Proposal(torch.stack(tokens), torch.stack(parents))


@pytest.mark.parametrize("attention", sample(["auto"], ["auto", "triton"]))
def test_text_is_unchanged(
    attention: str,
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (propose, speculator):
        monkeypatch.setattr(module, "MedusaProposer", ChangingProposer)
    medusa = {
        "model": llama.heads,
        "attention": attention,
        # Bounds of all trees: as many nodes, and as deep.
        "tree": [[0], [0, 0], [0, 0, 0], [0, 0, 0, 0], [1], [2]],
        "num_speculative_tokens_per_batch_size": [[1, 2, NUM_NODES], [3, 16, 4]],
    }
    with engine(llama.path, medusa, max_num_batched_tokens=128) as llm:
        text = token_ids(generate(llm, prompts[:8], greedy(MAX_TOKENS)))
        counters = stats(llm)
    assert text == [tokens[:MAX_TOKENS] for tokens in plain[:8]]
    assert counters["accepted"] > 20
    assert counters["moved"] > 5


def test_beam_trees_beside_a_grammar(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """Trees are the heads' own choice, in each step another; a request with a grammar
    keeps the fixed one, for which the scheduler makes its masks."""
    regex = StructuredOutputsParams(regex="[a-z]{9,}")
    params = [
        greedy(MAX_TOKENS, structured_outputs=regex if index % 3 == 0 else None)
        for index in range(COUNT)
    ]
    chosen = prompts[:COUNT]
    with engine(llama.path) as llm:
        expected = token_ids(generate(llm, chosen, params))
    medusa = {"model": llama.heads, "tree": "beam:3x3"}
    with engine(llama.path, medusa) as llm:
        texts = token_ids(generate(llm, chosen, params))
        counters = stats(llm)
    assert texts == expected
    assert texts[1] == plain[1][:MAX_TOKENS]
    assert texts[0] != plain[0][:MAX_TOKENS]
    assert counters["accepted"] > COUNT
    assert counters["moved"] > 0
