# SPDX-License-Identifier: Apache-2.0
"""Valid checkpoints of every form that is read, as names and contents of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from tests.unit.checkpoint.support import (
    HIDDEN,
    REFERENCE_CONFIG,
    VOCAB,
    Tensors,
    backbone,
    canonical_tensors,
    reference_names,
    write,
    write_sharded,
)
from vllm_medusa.checkpoint import save_heads
from vllm_medusa.heads import HeadsSpec

Files = dict[str, bytes]
"""Name of each file of a folder -> its content."""

_ACCURACIES = [[0.4, 0.2, 0.1], [0.3, 0.1, 0.05], [0.2, 0.1, 0.05]]
_SIDE_FILES = {
    "accuracies.json": {"accuracy": _ACCURACIES},
    "tree.json": {"paths": [[0], [1], [0, 0], [0, 0, 0]]},
    "calibration.json": {
        "num_speculative_tokens_per_batch_size": [[1, 2, 4], [3, 8, 1], [9, 9, 0]],
        "paths": [[0], [0, 0], [1], [0, 0, 0]],
        "accuracy": _ACCURACIES,
    },
}


def _reference_pt(folder: Path) -> None:
    write(folder, "medusa_lm_head.pt", reference_names(canonical_tensors()))
    (folder / "config.json").write_text(json.dumps(REFERENCE_CONFIG))


def _reference_safetensors(folder: Path) -> None:
    tensors = reference_names(canonical_tensors())
    write(folder, "medusa_lm_head.safetensors", tensors, REFERENCE_CONFIG)


def _shared_lm_head(folder: Path) -> None:
    tensors = reference_names(canonical_tensors(projection=False))
    config = {**REFERENCE_CONFIG, "version": "2"}
    write(folder, "medusa_lm_head.safetensors", tensors, config)


def _full_model(folder: Path) -> None:
    heads = reference_names(canonical_tensors(), "medusa_head.")
    write(folder, "model.safetensors", backbone() | heads, {"model_type": "llama"})


def _full_model_pt(folder: Path) -> None:
    heads = reference_names(canonical_tensors(), "medusa_head.")
    write(folder, "pytorch_model.bin", backbone() | heads, {"model_type": "llama"})


def _sharded(folder: Path) -> None:
    heads = reference_names(canonical_tensors(), "medusa_head.")
    half = len(heads) // 2
    shards: dict[str, Tensors] = {
        "model-00001-of-00003.safetensors": backbone(),
        "model-00002-of-00003.safetensors": dict(list(heads.items())[:half]),
        "model-00003-of-00003.safetensors": dict(list(heads.items())[half:]),
    }
    write_sharded(folder, shards, {"model_type": "llama"})


def _vllm(folder: Path) -> None:
    config = {"model_type": "medusa", "num_heads": 3, "num_hidden_layers": 2}
    tensors = canonical_tensors() | {"token_map": torch.arange(VOCAB)}
    write(folder, "model.safetensors", tensors, config)


def _nvidia(folder: Path) -> None:
    heads = reference_names(canonical_tensors(), "medusa_heads.")
    config = {"architectures": ["MedusaForCausalLM"]}
    write(folder, "model.safetensors", backbone() | heads, config)


def _own_form(**changes: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        fields = {"num_heads": 3, "hidden_size": HIDDEN, "vocab_size": VOCAB}
        spec = HeadsSpec(**fields | changes)  # type: ignore[arg-type]
        tensors = {
            name: torch.ones(shape) if name != "token_map" else torch.arange(*shape)
            for name, shape in spec.tensor_shapes().items()
        }
        save_heads(folder, spec, tensors, base_model="a/b", extra_config={"x": 1})

    return make


_MAKERS: dict[str, Callable[[Path], None]] = {
    "reference, torch file": _reference_pt,
    "reference, own LM heads": _reference_safetensors,
    "reference, shared LM head": _shared_lm_head,
    "full model": _full_model,
    "full model, torch file": _full_model_pt,
    "full model, sharded": _sharded,
    "vLLM, token map": _vllm,
    "NVIDIA": _nvidia,
    "canonical, mlp": _own_form(
        block="mlp", intermediate_size=6, projection="single", draft_vocab_size=5
    ),
    "canonical, layer norm, low rank": _own_form(
        block="layernorm", projection="low_rank", rank=2, num_layers=2
    ),
}


def make_forms(scratch: Path) -> dict[str, Files]:
    """Return every form with all side files; `scratch` is filled on the way."""
    forms = {}
    for number, (name, make) in enumerate(_MAKERS.items()):
        folder = scratch / str(number)
        folder.mkdir(parents=True)
        make(folder)
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        for side, content in _SIDE_FILES.items():
            files[side] = json.dumps(content).encode()
        forms[name] = dict(sorted(files.items()))
    return forms
