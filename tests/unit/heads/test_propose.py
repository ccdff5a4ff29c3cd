# SPDX-License-Identifier: Apache-2.0
"""What the proposer asks of the heads, and that it never waits for the device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.unit.heads.support import (
    HIDDEN,
    TinyModel,
    lm_head_weight,
    make_checkpoint,
    make_spec,
)
from vllm_medusa import propose
from vllm_medusa.heads import MedusaHeads

pytestmark = pytest.mark.usefixtures("one_rank")

# Heads 1, 1, 1, 2, 2 and their ranks, best first.
TREE = "[[0], [1], [2], [0, 0], [0, 1]]"


@pytest.fixture
def proposer(monkeypatch):
    config = SimpleNamespace(tree=TREE, num_heads=3)
    monkeypatch.setattr(propose, "medusa_config", lambda _: config)
    device = SimpleNamespace(device_config=SimpleNamespace(device="cpu"))
    made = propose.MedusaProposer(device)
    # "own": a product that has a meaning for fake tensors.
    checkpoint = make_checkpoint(make_spec("mlp", "own", mapped=True))
    made.heads = MedusaHeads.from_checkpoint(
        checkpoint, TinyModel(lm_head_weight(), None)
    )
    return made


@pytest.mark.parametrize("num_nodes", [1, 3, 5])
def test_nodes_are_the_heads_best_tokens(proposer, num_nodes):
    hidden = torch.randn(4, HIDDEN)
    _, best = proposer.heads.top_k(hidden, 3, 3)
    expected = best[:, [0, 0, 0, 1, 1], [0, 1, 2, 0, 1]]
    proposal = proposer.propose(hidden, num_nodes)
    assert torch.equal(proposal.tokens, expected[:, :num_nodes])


def test_no_value_is_needed_on_the_host(proposer):
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        proposal = proposer.propose(torch.zeros(4, HIDDEN), 5)
    assert proposal.tokens.shape == (4, 5)
