# SPDX-License-Identifier: Apache-2.0
"""What the proposer is told of each request, and where its answers are kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from tests.unit.runner.steps import HostTensor
from vllm_medusa.acceptance import Acceptance
from vllm_medusa.heads.draft_sampling import DraftSampling
from vllm_medusa.propose import Proposal
from vllm_medusa.runner.v2 import request_states, speculator
from vllm_medusa.runner.v2.speculator import MedusaSpeculator
from vllm_medusa.tree import TokenTree

MAX_NUM_REQS, HIDDEN, VOCAB_SIZE = 5, 3, 7
TREE = TokenTree.from_paths([[0], [1], [0, 0]])


class Proposer:
    """Notes what it is asked; its probabilities tell which request they are of."""

    tree = TREE
    heads = SimpleNamespace(vocab_size=VOCAB_SIZE)

    def __init__(self, scheme: str, has_fixed_tree: bool) -> None:
        self.config = SimpleNamespace(engine_acceptance=Acceptance(scheme=scheme))
        self.is_sampling = scheme == "rejection"
        self.has_fixed_tree = has_fixed_tree
        self.asked: list[tuple[DraftSampling | None, torch.Tensor | None]] = []

    def load_model(self, target_model: Any) -> None:
        """Nothing to load."""

    def propose(
        self,
        hidden: torch.Tensor,
        num_nodes: int,
        sampling: DraftSampling | None,
        is_fixed: torch.Tensor | None,
    ) -> Proposal:
        self.asked.append((sampling, is_fixed))
        num_reqs = len(hidden)
        tokens = torch.zeros(num_reqs, num_nodes, dtype=torch.int64)
        parents = probs = None
        if not self.has_fixed_tree:
            parents = torch.zeros(num_reqs, num_nodes + 1, dtype=torch.int32)
        if sampling is not None:
            depth = TREE.truncate(num_nodes).max_depth
            probs = hidden[:, :1, None].expand(-1, depth, VOCAB_SIZE)
        return Proposal(tokens, parents, probs)


class Graphs:
    """A captured graph: runs the heads for a padded batch."""

    def __init__(self, made: MedusaSpeculator, padded: int) -> None:
        self.made, self.padded = made, padded

    def replay(self, num_reqs: int, num_nodes: int) -> bool:
        self.made._run(self.padded, num_nodes)
        return True


def make(
    monkeypatch: pytest.MonkeyPatch, scheme: str = "rejection", *, fixed: bool = True
) -> MedusaSpeculator:
    monkeypatch.setattr(request_states, "UvaBackedTensor", HostTensor)
    proposer = Proposer(scheme, fixed)
    monkeypatch.setattr(speculator, "MedusaProposer", lambda config: proposer)
    config: Any = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=MAX_NUM_REQS),
        model_config=SimpleNamespace(
            get_hidden_size=lambda: HIDDEN, dtype=torch.float32
        ),
    )
    states: Any = None
    made = MedusaSpeculator(config, torch.device("cpu"), states)
    made.load_model(torch.nn.Identity())
    # The last accepted rows of two requests are tokens 1 and 5 of the step.
    made.verifier = SimpleNamespace(last_rows=lambda _: torch.tensor([1, 5]))  # type: ignore[assignment]
    return made


def propose(made: MedusaSpeculator, states: list[int], **options: Any) -> torch.Tensor:
    """One step of two requests; the hidden state of token i is i + 1."""
    batch: Any = SimpleNamespace(
        num_reqs=2,
        idx_mapping=torch.tensor(states),
        logits_indices=torch.tensor([0, 3]),
        positions=torch.tensor([20, 21, 21, 40, 41, 42]),
    )
    hidden = torch.arange(1.0, 7.0)[:, None].expand(-1, HIDDEN)
    seeds = torch.arange(MAX_NUM_REQS) * 100
    unused = torch.zeros(2)
    return made.propose(
        batch, {}, {}, hidden, None, *[unused] * 5, seeds=seeds, **options
    )


def test_draft_probabilities_by_request_state(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(monkeypatch)
    assert made.draft_probs is not None
    for index, temperature in ((3, 0.7), (1, 0.0)):
        made.requests.add(index, SamplingParams(temperature=temperature))
    made.requests.flush()
    propose(made, [3, 1])
    ((sampling, is_fixed),) = made.proposer.asked  # type: ignore[attr-defined]
    assert is_fixed is None
    assert sampling.temperature.tolist() == pytest.approx([0.7, 0.0])
    assert sampling.seeds.tolist() == [300, 100]
    # The root of the next tree follows the last accepted row.
    assert sampling.positions.tolist() == [22, 43]
    assert made.draft_probs[:, 0, 0].tolist() == [0, 6, 0, 2, 0, 0]
    assert (made.draft_probs[3] == 2).all()

    # Fewer nodes reach fewer heads; the other heads' are left alone.
    propose(made, [1, 3], num_speculative_tokens=2)
    assert made.draft_probs[1, :, 0].tolist() == [2, 6]
    assert made.draft_probs[3, :, 0].tolist() == [6, 2]


def test_padding_and_dummy_runs_write_to_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make(monkeypatch)
    assert made.draft_probs is not None
    propose(made, [3, 1])
    before = made.draft_probs.clone()
    propose(made, [0, 2], dummy_run=True)
    assert torch.equal(made.draft_probs[:MAX_NUM_REQS], before[:MAX_NUM_REQS])
    made._graphs = Graphs(made, MAX_NUM_REQS)  # type: ignore[assignment]
    propose(made, [2, 0])
    assert made.draft_probs[:MAX_NUM_REQS, 0, 0].tolist() == [6, 6, 2, 2, 0]


def test_memory_of_draft_probabilities_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampling, exact = make(monkeypatch), make(monkeypatch, "exact")
    probs = (MAX_NUM_REQS + 1) * 2 * VOCAB_SIZE * 4
    by_request = MAX_NUM_REQS * (4 + 3 * 8)
    assert sampling.num_buffer_bytes - exact.num_buffer_bytes == probs + by_request
    assert exact.draft_probs is None
    propose(exact, [3, 1])
    assert exact.proposer.asked == [(None, None)]  # type: ignore[attr-defined]


def test_requests_with_a_grammar_get_the_tree_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make(monkeypatch, "exact", fixed=False)
    grammar = StructuredOutputsParams(regex="a+")
    made.requests.add(4, SamplingParams(structured_outputs=grammar))
    made.requests.add(1, SamplingParams())
    made.requests.flush()
    propose(made, [1, 4])
    ((sampling, is_fixed),) = made.proposer.asked  # type: ignore[attr-defined]
    assert sampling is None
    assert is_fixed.tolist() == [False, True]
