# SPDX-License-Identifier: Apache-2.0
"""Heads that take other weights are heads that were made of these, on all ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.heads.support import (
    HIDDEN,
    TinyModel,
    all_specs,
    lm_head_weight,
    make_checkpoint,
    make_spec,
    spec_name,
)
from tests.unit.ranks import as_rank, run_ranks
from vllm_medusa import propose
from vllm_medusa.checkpoint import HeadsCheckpoint
from vllm_medusa.errors import CheckpointError
from vllm_medusa.heads import HeadsSpec, MedusaHeads

SPECS = all_specs()
NUM_HEADS, K = 2, 5


def guesses(heads: MedusaHeads) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(3, HIDDEN, generator=generator)
    return heads.top_k(hidden, NUM_HEADS, K)


def same(mine: MedusaHeads, theirs: MedusaHeads) -> bool:
    pairs = zip(guesses(mine), guesses(theirs), strict=True)
    ids = mine.draft_token_ids, theirs.draft_token_ids
    same_ids = all(i is None for i in ids) or torch.equal(*ids)  # type: ignore[arg-type]
    return same_ids and all(torch.equal(a, b) for a, b in pairs)


def compare(spec: HeadsSpec) -> list[bool]:
    """Other heads, then another base model: what was to be so, in order."""
    base = TinyModel(lm_head_weight(), None)
    heads = MedusaHeads.from_checkpoint(make_checkpoint(spec), base)
    addresses = [buffer.data_ptr() for buffer in heads.buffers()]
    other = make_checkpoint(spec, seed=7)
    fresh = MedusaHeads.from_checkpoint(other, base)
    found = [not same(heads, fresh)]
    heads.check_update(other, base)
    heads.update(other, base)
    found.append(same(heads, fresh))
    changed = TinyModel(lm_head_weight(9), None)
    base.lm_head.weight.data.copy_(changed.lm_head.weight)
    heads.follow(base)
    found.append(same(heads, MedusaHeads.from_checkpoint(other, changed)))
    found.append(addresses == [buffer.data_ptr() for buffer in heads.buffers()])
    return found


def proposer(base: TinyModel, **config: Any) -> Any:
    """A `MedusaProposer` with what `reload` reads."""
    made: Any = propose.MedusaProposer.__new__(propose.MedusaProposer)
    made.config = SimpleNamespace(
        num_heads=None, draft_vocab=None, acceptance="exact", **config
    )
    made._path = "first"
    made.heads = MedusaHeads.from_checkpoint(make_checkpoint(SPEC), base)
    return made


SPEC = make_spec("residual", "own", mapped=True)


def reload_on(rank: int) -> str:
    """The message of a reload that fails on rank 1; whether anything changed."""

    def load_heads(path: str, **_: Any) -> HeadsCheckpoint:
        if rank == 1:
            raise CheckpointError(f"{path} is missing")
        return make_checkpoint(SPEC, seed=7)

    propose.load_heads = load_heads  # type: ignore[assignment]
    base = TinyModel(lm_head_weight(), None)
    made = proposer(base)
    before = [buffer.clone() for buffer in made.heads.buffers()]
    with pytest.raises(CheckpointError) as raised:
        made.reload("second", base)
    after = list(made.heads.buffers())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert made._path == "first"
    return str(raised.value)


def run_rank(rank: int, size: int, folder: str) -> None:
    """Body of one process."""
    with as_rank(rank, size, folder):
        results = [compare(spec) for spec in SPECS], reload_on(rank)
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.mark.parametrize("spec", SPECS, ids=spec_name)
def test_one_rank(spec: HeadsSpec, one_rank: None) -> None:
    assert compare(spec) == [True] * 4


def test_two_ranks(tmp_path: Path) -> None:
    ranks = run_ranks(run_rank, tmp_path)
    for found, _ in ranks:
        assert found == [[True] * 4] * len(SPECS)
    # A failure on one rank is one on all, and nobody waits for the others.
    assert ranks[1][1] == "second is missing"
    assert ranks[0][1].startswith("second: not usable on 1 of the other ranks")


def test_other_shapes(one_rank: None) -> None:
    base = TinyModel(lm_head_weight(), None)
    heads = MedusaHeads.from_checkpoint(make_checkpoint(SPEC), base)
    for other in (
        make_spec("residual", "own", mapped=True, num_heads=2),
        make_spec("residual", "own", mapped=False),
        make_spec("residual", "shared", mapped=True),
    ):
        with pytest.raises(CheckpointError, match="of the shape that it was started"):
            heads.check_update(make_checkpoint(other), base)


def test_a_token_map_under_rejection(
    one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates that were drawn over one draft vocabulary are verified over it."""
    base = TinyModel(lm_head_weight(), None)
    made = proposer(base)
    made.config.acceptance = "rejection"
    checkpoint = make_checkpoint(SPEC, seed=7)
    monkeypatch.setattr(propose, "load_heads", lambda path, **_: checkpoint)
    with pytest.raises(CheckpointError, match="same token_map"):
        made.reload("second", base)
    checkpoint.tensors["token_map"] = make_checkpoint(SPEC).tensors["token_map"]
    made.reload("second", base)
    assert made._path == "second"
    assert same(made.heads, MedusaHeads.from_checkpoint(checkpoint, base))
