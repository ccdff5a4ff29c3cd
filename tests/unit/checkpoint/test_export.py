# SPDX-License-Identifier: Apache-2.0
"""Heads in the reference's form load in its modules and compute the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.unit.checkpoint.support import (
    HEADS,
    HIDDEN,
    VOCAB,
    assert_same,
    canonical_tensors,
)
from vllm_medusa.checkpoint import load_heads, save_heads
from vllm_medusa.cli.convert import convert
from vllm_medusa.errors import ConfigError, MedusaError, UnsupportedError
from vllm_medusa.heads import HeadsSpec
from vllm_medusa.heads.reference import ReferenceHeads


class ResBlock(nn.Module):
    """As in the reference: x + SiLU(linear(x)), the linear layer with a bias."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.silu(self.linear(x))


def reference_heads(config: dict[str, Any]) -> nn.ModuleList:
    """`MedusaModel.medusa_head`, with one block repeated, as the reference makes it."""
    return nn.ModuleList(
        nn.Sequential(
            *([ResBlock(HIDDEN)] * config["medusa_num_layers"]),
            nn.Linear(HIDDEN, VOCAB, bias=False),
        )
        for _ in range(config["medusa_num_heads"])
    )


def spec_of(**changes: Any) -> HeadsSpec:
    values = {"num_heads": HEADS, "hidden_size": HIDDEN, "vocab_size": VOCAB}
    return HeadsSpec(**{**values, "projection": "own", **changes})


def make(folder: Path, spec: HeadsSpec, base_model: str | None = "org/base") -> Path:
    """Save random heads."""
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in spec.tensor_shapes().items()}
    if "token_map" in tensors:
        tensors["token_map"] = torch.randperm(VOCAB)[: len(tensors["token_map"])]
    if spec.block == "residual":
        for name in tensors:  # one block, repeated
            if ".layers.1." in name:
                tensors[name] = tensors[name.replace(".layers.1.", ".layers.0.")]
    return save_heads(folder, spec, tensors, base_model=base_model)


@pytest.mark.parametrize(
    ("release", "file"),
    [("v0.1", "medusa_lm_head.pt"), ("v1", "medusa_lm_head.safetensors")],
)
@pytest.mark.parametrize(
    "spec",
    [
        spec_of(),
        spec_of(num_layers=2),
        spec_of(block_bias=False),
        spec_of(projection="single"),
        spec_of(draft_vocab_size=VOCAB),
        spec_of(projection="single", draft_vocab_size=VOCAB),
    ],
    ids=["own", "two layers", "no bias", "single", "own, mapped", "single, mapped"],
)
def test_the_reference_loads_them_and_computes_the_same(
    tmp_path: Path, spec: HeadsSpec, release: str, file: str
) -> None:
    ours = load_heads(make(tmp_path / "ours", spec))
    target = convert(tmp_path / "ours", tmp_path / "theirs", form=release)
    assert {path.name for path in target.iterdir()} == {file, "config.json"}
    config = json.loads((target / "config.json").read_text())
    assert config == {
        "base_model_name_or_path": "org/base",
        "medusa_num_heads": HEADS,
        "medusa_num_layers": spec.num_layers,
    }
    path = target / file
    if release == "v0.1":
        state = torch.load(path, map_location="cpu", weights_only=True)
    else:
        state = load_file(path)
    heads = reference_heads(config)
    heads.load_state_dict(state, strict=True)
    hidden = torch.randn(5, HIDDEN)
    with torch.no_grad():
        theirs = torch.stack([head(hidden) for head in heads], dim=-2)
        expected = ReferenceHeads.from_tensors(spec, ours.tensors)(hidden)
    if "token_map" in ours.tensors:
        theirs = theirs[..., ours.tensors["token_map"]]
    assert torch.allclose(theirs, expected, atol=1e-5)
    # And back again.
    again = load_heads(target)
    assert again.format == ("A" if release == "v0.1" else "B")
    if spec == spec_of():
        assert_same(again.tensors, ours.tensors)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (spec_of(block="mlp", intermediate_size=8), "blocks are 'mlp'.*--block"),
        (spec_of(block="layernorm"), "blocks are 'layernorm'"),
        (spec_of(draft_vocab_size=4), "among 4 tokens .*--draft-vocab"),
        (spec_of(projection="shared"), "share the base model's LM head.*--projection"),
        (spec_of(projection="low_rank", rank=2), "of rank 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_reference_has_no_form_for(
    tmp_path: Path, spec: HeadsSpec, message: str
) -> None:
    make(tmp_path / "ours", spec)
    with pytest.raises(UnsupportedError, match=message):
        convert(tmp_path / "ours", tmp_path / "theirs", form="v0.1")
    assert not (tmp_path / "theirs").exists()


def test_refused(tmp_path: Path) -> None:
    save_heads(tmp_path / "two", spec_of(num_layers=2), canonical_tensors())
    make(tmp_path / "nameless", spec_of(), base_model=None)
    cases: list[tuple[str, str, type[MedusaError], str]] = [
        ("two", "v0.1", UnsupportedError, "layers 0 and 1 of head 0 differ"),
        ("nameless", "v1", ConfigError, "give --base-model"),
        ("nameless", "v9", ConfigError, "unknown form 'v9'"),
    ]
    for name, form, error, message in cases:
        with pytest.raises(error, match=message):
            convert(tmp_path / name, tmp_path / "new", form=form)
    target = convert(tmp_path / "nameless", tmp_path / "new", form="v1", base_model="b")
    assert '"b"' in (target / "config.json").read_text()
