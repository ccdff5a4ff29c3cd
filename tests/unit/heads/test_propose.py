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
from vllm_medusa.heads.draft_sampling import DraftSampling
from vllm_medusa.tree import BeamTree, parse_tree

pytestmark = pytest.mark.usefixtures("one_rank")

# Heads 1, 1, 1, 2, 2 and their ranks, best first.
TREE = "[[0], [1], [2], [0, 0], [0, 1]]"


@pytest.fixture
def make(monkeypatch):
    def make(tree=TREE, acceptance="exact"):
        config = SimpleNamespace(tree=tree, num_heads=3, acceptance=acceptance)
        monkeypatch.setattr(propose, "medusa_config", lambda _: config)
        parsed = parse_tree(tree, num_heads=3)
        monkeypatch.setattr(propose, "scheduled_tree", lambda _: parsed)
        device = SimpleNamespace(device_config=SimpleNamespace(device="cpu"))
        made = propose.MedusaProposer(device)
        # "own": a product that has a meaning for fake tensors.
        checkpoint = make_checkpoint(make_spec("mlp", "own", mapped=True))
        made.heads = MedusaHeads.from_checkpoint(
            checkpoint, TinyModel(lm_head_weight(), None)
        )
        return made

    return make


def sampling(num_reqs, temperature):
    return DraftSampling(
        torch.full((num_reqs,), temperature),
        torch.arange(num_reqs),
        torch.arange(num_reqs) + 9,
    )


@pytest.mark.parametrize("num_nodes", [1, 3, 5])
def test_nodes_are_the_heads_best_tokens(make, num_nodes):
    proposer = make()
    hidden = torch.randn(4, HIDDEN)
    _, best = proposer.heads.top_k(hidden, 3, 3)
    expected = best[:, [0, 0, 0, 1, 1], [0, 1, 2, 0, 1]]
    proposal = proposer.propose(hidden, num_nodes)
    assert torch.equal(proposal.tokens, expected[:, :num_nodes])
    assert proposal.parents is proposal.probs is None


@pytest.mark.parametrize("num_nodes", [1, 3, 6])
def test_nodes_are_drawn_for_rejection(make, num_nodes):
    """The first child takes the first draw, whatever its rank among the best is."""
    proposer = make("[[2], [0], [2, 1], [2, 0], [0, 0], [2, 1, 3]]", "rejection")
    hidden = torch.randn(4, HIDDEN)
    proposal = proposer.propose(hidden, num_nodes, sampling(4, 1.0))
    depth = {1: 1, 3: 2, 6: 3}[num_nodes]
    drawn, probs = proposer.heads.sample(hidden, depth, 2, sampling(4, 1.0))
    head, ordinal = [0, 0, 1, 1, 1, 2], [0, 1, 0, 1, 0, 0]
    expected = drawn[:, head[:num_nodes], ordinal[:num_nodes]]
    assert torch.equal(proposal.tokens, expected)
    assert torch.equal(proposal.probs, probs)
    # And without a temperature the best ones.
    greedy = proposer.propose(hidden, num_nodes, sampling(4, 0.0))
    _, best = proposer.heads.top_k(hidden, depth, 2)
    assert torch.equal(greedy.tokens, best[:, head[:num_nodes], ordinal[:num_nodes]])


@pytest.mark.parametrize("num_nodes", [2, 6])
def test_a_beam_is_searched_for_every_request(make, num_nodes):
    proposer = make("beam:3x2")
    assert not proposer.has_fixed_tree
    hidden = torch.randn(4, HIDDEN)
    is_fixed = torch.tensor([False, True, False, False])
    proposal = proposer.propose(hidden, num_nodes, is_fixed=is_fixed)
    log_probs, best = proposer.heads.top_k(hidden, 2, 3)
    tokens, parents = BeamTree(3, 2).build(log_probs, best)
    tree = proposer.tree
    tokens[1] = best[1, torch.tensor(tree.depths[1:]) - 1, torch.tensor(tree.ranks[1:])]
    parents[1] = torch.tensor((0, *tree.parents[1:]))
    assert torch.equal(proposal.tokens, tokens[:, :num_nodes])
    assert torch.equal(proposal.parents, parents[:, : num_nodes + 1])


@pytest.mark.parametrize(
    ("tree", "acceptance"),
    [(TREE, "exact"), (TREE, "rejection"), ("beam:5x1", "exact")],
)
def test_no_value_is_needed_on_the_host(make, tree, acceptance):
    proposer = make(tree, acceptance)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        proposal = proposer.propose(
            torch.zeros(4, HIDDEN),
            5,
            sampling(4, 0.7),
            torch.zeros(4, dtype=torch.bool),
        )
    assert proposal.tokens.shape == (4, 5)
