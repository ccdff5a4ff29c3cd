# SPDX-License-Identifier: Apache-2.0
"""Which drafts of a tree count as placeholders, as vLLM's own kernel decides it."""

from __future__ import annotations

import pytest
import torch
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import gather_draft_sampled

from tests.unit.runner.test_step_trees import TREE, batch, step_trees
from vllm_medusa.tree import TokenTree, chain

pytestmark = pytest.mark.interpreter
BASE = 10


@pytest.mark.parametrize("tree", [TREE, chain(4)], ids=["tree", "chain"])
def test_first_tree_after_the_prompt(tree: TokenTree) -> None:
    """A row lies in a later place than its depth says. Yet all drafts count as soon as
    the root follows the prompt, and none while it is of the prompt."""
    trees = step_trees(tree)
    step = batch([5, 5, 1], [4, 4, 0], BASE)
    trees.begin(step, ())
    assert trees.row_depths is not None
    tokens, positions = gather_draft_sampled(
        torch.arange(11, dtype=torch.int32),
        step.positions,
        step.logits_indices,
        step.expanded_idx_mapping,
        trees.row_depths,
        torch.tensor([BASE, BASE + 1, BASE], dtype=torch.int32),
    )
    assert tokens.tolist() == [0, 1, 2, 3, 4, 5, -1, -1, -1, -1, 10]
    depths = list(tree.depths)
    assert positions.tolist() == [BASE + d for d in (*depths, *depths, 0)]
