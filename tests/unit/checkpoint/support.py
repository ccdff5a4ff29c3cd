# SPDX-License-Identifier: Apache-2.0
"""Heads with known weights, and the forms in which others have published such."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vllm_medusa.checkpoint import load_heads
from vllm_medusa.errors import CheckpointError

HEADS, LAYERS, HIDDEN, VOCAB = 3, 2, 4, 11

REFERENCE_CONFIG = {
    "base_model_name_or_path": "lmsys/vicuna-7b-v1.3",
    # What the published configs say, whatever the weights hold.
    "medusa_num_heads": 2,
    "medusa_num_layers": 1,
    "transformers_version": "4.31.0",
}

Tensors = dict[str, torch.Tensor]


def canonical_tensors(
    *,
    heads: int = HEADS,
    layers: int = LAYERS,
    bias: bool = True,
    projection: bool = True,
) -> Tensors:
    """Residual heads; every number differs from every other."""
    tensors: Tensors = {}
    for head in range(heads):
        for layer in range(layers):
            name = f"blocks.{head}.layers.{layer}"
            tensors[f"{name}.weight"] = torch.zeros(HIDDEN, HIDDEN)
            if bias:
                tensors[f"{name}.bias"] = torch.zeros(HIDDEN)
        if projection:
            tensors[f"lm_heads.{head}.weight"] = torch.zeros(VOCAB, HIDDEN)
    start = 1
    for tensor in tensors.values():
        tensor.copy_(torch.arange(start, start + tensor.numel()).view_as(tensor))
        start += tensor.numel()
    return tensors


def reference_names(
    tensors: Tensors, prefix: str = "", layers: int = LAYERS
) -> Tensors:
    """The names that the reference implementation gives (formats A to D, F, G)."""
    renamed = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            renamed[f"{prefix}{parts[1]}.{parts[3]}.linear.{parts[4]}"] = tensor
        else:
            renamed[f"{prefix}{parts[1]}.{layers}.weight"] = tensor
    return renamed


def backbone() -> Tensors:
    """Some of a base model's tensors, a quantised one among them."""
    return {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN),
        "model.layers.0.self_attn.q_proj.weight": torch.ones(4, 4).to(
            torch.float8_e4m3fn
        ),
        "model.layers.0.self_attn.q_proj.weight_scale": torch.ones(1),
        "model.layers.0.mlp.up_proj.qweight": torch.ones(4, 4, dtype=torch.int32),
        "lm_head.weight": torch.full((VOCAB, HIDDEN), torch.nan),
    }


def write(
    folder: Path,
    file: str,
    tensors: Mapping[str, torch.Tensor],
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint folder with one tensor file."""
    folder.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        save_file({k: v.clone() for k, v in tensors.items()}, folder / file)
    else:
        torch.save(dict(tensors), folder / file)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_sharded(
    folder: Path, shards: Mapping[str, Tensors], config: dict[str, Any]
) -> Path:
    """Write a full model in shards with an index."""
    for file, tensors in shards.items():
        write(folder, file, tensors, config)
    weight_map = {name: file for file, part in shards.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def assert_same(actual: Mapping[str, torch.Tensor], expected: Tensors) -> None:
    assert sorted(actual) == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def refused(path: Path, message: str, **arguments) -> None:
    """Loading the heads at `path` must fail with this message."""
    with pytest.raises(CheckpointError, match=message):
        load_heads(path, **arguments)
