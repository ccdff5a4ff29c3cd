# SPDX-License-Identifier: Apache-2.0
"""Two ranks over gloo give what one rank gives, for every kind of heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.heads.support import (
    HIDDEN,
    VOCAB,
    TinyModel,
    all_specs,
    lm_head_weight,
    make_checkpoint,
    make_spec,
)
from tests.unit.ranks import as_rank, run_ranks
from vllm_medusa.heads import HeadsSpec, MedusaHeads, ReferenceHeads
from vllm_medusa.heads.draft_sampling import DraftSampling
from vllm_medusa.tree import BeamTree

BATCH = 3
WIDTH = 4
"""Of beams."""
CASES: list[tuple[HeadsSpec, int, int, bool]] = [
    *((spec, 3, 10, False) for spec in all_specs()),
    (make_spec("residual", "shared", mapped=False, num_heads=8), 8, 10, True),
    (make_spec("mlp", "shared", mapped=True, num_heads=8), 5, 10, True),
    # More guesses than one rank has tokens.
    (make_spec("mlp", "shared", mapped=False), 2, VOCAB, False),
    (make_spec("mlp", "own", mapped=True), 2, 120, False),
    # The second rank has no token at all.
    (replace(make_spec("mlp", "shared", mapped=True), draft_vocab_size=1), 2, 1, False),
    (replace(make_spec("mlp", "own", mapped=True), draft_vocab_size=1), 2, 1, False),
]


def lm_head_bias() -> torch.Tensor:
    return torch.linspace(-2, 2, VOCAB)


def hidden_states() -> torch.Tensor:
    return torch.randn(BATCH, HIDDEN, generator=torch.Generator().manual_seed(2))


def greedy_and_drawn() -> DraftSampling:
    return DraftSampling(
        torch.tensor([0.0, 0.7, 1.3]), torch.arange(BATCH), torch.arange(BATCH) + 40
    )


# probs: [BATCH, num_heads, draft_vocab] -> [BATCH, num_heads, VOCAB]
def spread(heads: MedusaHeads, probs: torch.Tensor) -> torch.Tensor:
    """Distributions over the draft vocabulary as ones over the base's."""
    assert probs.shape[-1] == heads.vocab_size
    ids = heads.draft_token_ids
    if ids is None:
        return probs
    # Rejection sampling would count a token twice that stood there twice.
    assert len(ids.unique()) == len(ids) == heads.vocab_size
    return torch.zeros(*probs.shape[:2], VOCAB).index_add_(-1, ids, probs)


def run_rank(rank: int, size: int, folder: str) -> None:
    """Body of one process: every case on this rank, results to a file."""
    results = []
    with as_rank(rank, size, folder):
        for spec, num_heads, k, bias in CASES:
            base = TinyModel(lm_head_weight(), lm_head_bias() if bias else None)
            heads = MedusaHeads.from_checkpoint(make_checkpoint(spec), base)
            hidden = hidden_states()
            best = heads.best_tokens(hidden, num_heads, k)
            drawn = heads.sample(hidden, num_heads, k, greedy_and_drawn())
            distributions = spread(heads, drawn[1])
            results.append(
                (
                    *heads.top_k(hidden, num_heads, k),
                    best,
                    drawn[0],
                    distributions,
                    BeamTree(min(k, WIDTH), num_heads).build(
                        *heads.top_k(hidden, num_heads, min(k, WIDTH))
                    ),
                )
            )
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list]:
    return run_ranks(run_rank, tmp_path_factory.mktemp("ranks"))


# ([BATCH, num_heads, draft_vocab], [draft_vocab] int64)
def reference_logits(
    spec: HeadsSpec, num_heads: int, bias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of one rank alone, and the token of each column."""
    checkpoint = make_checkpoint(spec)
    reference = ReferenceHeads.from_tensors(spec, checkpoint.tensors)
    token_map = checkpoint.tensors.get("token_map", torch.arange(VOCAB))
    with torch.inference_mode():
        logits = reference(hidden_states(), lm_head_weight())[:, :num_heads]
        if bias:
            logits = logits + lm_head_bias()[token_map]
    return logits, token_map


def expected(
    spec: HeadsSpec, num_heads: int, k: int, bias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    logits, token_map = reference_logits(spec, num_heads, bias)
    best = logits.log_softmax(-1).topk(k)
    return best.values, token_map[best.indices]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_ranks_equal_one(two_ranks, case):
    log_probs, token_ids = expected(*CASES[case])
    for rank in range(2):
        values, ids, best, *_ = two_ranks[rank][case]
        torch.testing.assert_close(values, log_probs, atol=1e-5, rtol=1e-5)
        # To the last bit the same on both, whatever each has computed itself.
        assert torch.equal(values, two_ranks[0][case][0])
        assert torch.equal(ids, token_ids)
        assert torch.equal(best, token_ids)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_ranks_search_the_same_trees(two_ranks, case):
    """Nobody sends a beam's parents to the other ranks."""
    _, num_heads, k, _ = CASES[case]
    beam = BeamTree(min(k, WIDTH), num_heads)
    tokens, parents = beam.build(*expected(*CASES[case]))
    for rank in range(2):
        assert torch.equal(two_ranks[rank][case][5][0], tokens)
        assert torch.equal(two_ranks[rank][case][5][1], parents)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_ranks_draw_alike(two_ranks, case):
    """From the whole vocabulary, whose parts may differ in length by rank."""
    spec, num_heads, _, bias = CASES[case]
    logits, token_map = reference_logits(spec, num_heads, bias)
    temperature = greedy_and_drawn().temperature
    scaled = logits / torch.where(temperature == 0, 1, temperature)[:, None, None]
    probs = torch.zeros(BATCH, num_heads, VOCAB)
    probs[..., token_map] = scaled.softmax(-1)
    drawn = [results[case][3] for results in two_ranks]
    distributions = [results[case][4] for results in two_ranks]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(distributions[0], distributions[1])
    torch.testing.assert_close(distributions[0], probs, atol=1e-5, rtol=1e-4)
    # Different tokens of the draft vocabulary, the best ones at temperature 0.
    assert torch.equal(drawn[0][0], expected(*CASES[case])[1][0])
    assert torch.isin(drawn[0], token_map).all()
    assert (drawn[0].sort(-1).values.diff() > 0).all()
