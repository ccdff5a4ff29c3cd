# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from tests.unit.train import toy
from vllm_medusa.checkpoint import load_heads, save_heads
from vllm_medusa.heads.reference import ReferenceHeads

KINDS = [
    {"block": "residual", "intermediate_size": None},
    {"block": "layernorm", "intermediate_size": None, "num_layers": 2},
    {"num_layers": 2},
    {"block_bias": False},
    {"projection": "single"},
    {"projection": "own"},
    {"projection": "low_rank", "rank": 4},
]


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_same_function_as_the_reference_after_saving(
    changes: dict[str, object], tmp_path: Path
) -> None:
    spec = toy.spec(**changes)
    heads = toy.heads(spec).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    save_heads(tmp_path, spec, heads.tensors(torch.float32), base_model="toy")
    loaded = load_heads(tmp_path)
    reference = ReferenceHeads.from_tensors(loaded.spec, loaded.tensors)
    hidden = torch.randn(6, toy.HIDDEN, generator=generator)
    expected = reference(hidden, lm_head=toy.lm_head())  # [B, K, Vd]
    actual = heads.logits(heads.states(hidden)).transpose(0, 1)
    assert torch.allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("projection", ["shared", "single", "own"])
def test_fresh_heads_guess_what_the_base_model_does(projection: str) -> None:
    heads = toy.heads(toy.spec(projection=projection))
    hidden = toy.corpus().hidden[:20]
    ids = torch.arange(0, 30, 2)
    expected = heads.base_logits(hidden, ids)
    for logits in heads.logits(heads.states(hidden), ids):
        assert torch.allclose(logits, expected, atol=1e-4)
