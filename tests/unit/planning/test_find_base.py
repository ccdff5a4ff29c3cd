# SPDX-License-Identifier: Apache-2.0
"""The base model of a plan: headers where there are any, else config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from vllm_medusa.errors import CheckpointError, MedusaError, UnsupportedError
from vllm_medusa.planning.find_base import find_base
from vllm_medusa.planning.weights import rank_weights

CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def write_config(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    values = {k: v for k, v in (CONFIG | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_config_alone_gives_what_the_headers_give(tmp_path: Path) -> None:
    """Every architecture that is known by its config, against transformers' own."""
    from transformers import AutoConfig, AutoModelForCausalLM

    for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"):
        folder = write_config(
            tmp_path / kind, model_type=kind, architectures=None, head_dim=8
        )
        by_config = find_base(str(folder))
        assert by_config.source == "config.json"
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        tensors = {
            name: torch.empty(parameter.shape, dtype=torch.bfloat16)
            for name, parameter in model.named_parameters()
        }
        save_file(tensors, folder / "model.safetensors")
        by_headers = find_base(str(folder))
        assert by_headers.source.startswith("headers")
        assert by_config.shapes == by_headers.shapes
        assert by_config.head_size == 8
        half = rank_weights(by_headers, 2, "bfloat16", None)
        assert 0 < half.total < sum(t.nbytes for t in tensors.values())


def test_quantised_checkpoints_are_planned_by_config(tmp_path: Path) -> None:
    stated = {"quant_method": "awq", "bits": 4, "group_size": 64}
    folder = write_config(tmp_path / "awq", quantization_config=stated)
    # Packed tensors, whose names and shapes are not those of the model.
    packed = {"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, dtype=torch.int32)}
    save_file(packed, folder / "model.safetensors")
    model = find_base(str(folder))
    assert (model.quantization, model.quantization_group) == ("awq", 64)
    weights = rank_weights(model, 1, "bfloat16", model.quantization)
    numbers = 2 * 3 * 32 * 48
    assert weights.by_kind["mlp"] == numbers // 2 + numbers // 64 * 5 // 2


@dataclass
class Info:
    shape: list[int]


@dataclass
class File:
    tensors: dict[str, Info]


@dataclass
class Metadata:
    files_metadata: dict[str, File]


def test_hub_ids_need_only_config_and_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_config(tmp_path / "snapshot")
    shapes = dict(find_base(str(folder)).shapes)
    fetched = []

    def download(repository: str, name: str, revision: str | None = None) -> str:
        fetched.append((repository, name, revision))
        return str(folder / name)

    def metadata(repository: str, revision: str | None = None) -> Metadata:
        infos = {f"model.{name}": Info(list(shape)) for name, shape in shapes.items()}
        infos["medusa_head.0.0.linear.weight"] = Info([32, 32])
        return Metadata({"model.safetensors": File(infos)})

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", metadata)
    model = find_base("somebody/model", "v1")
    assert fetched == [("somebody/model", "config.json", "v1")]
    assert model.shapes == shapes

    def unreachable(repository: str, revision: str | None = None) -> Metadata:
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", unreachable)
    assert find_base("somebody/model").source == "config.json"


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        (
            {"model_type": "mixtral", "num_local_experts": 8},
            UnsupportedError,
            "experts",
        ),
        ({"model_type": "phi"}, UnsupportedError, "model type 'phi'"),
        ({"model_type": "nonsense"}, CheckpointError, "no config"),
        ({"hidden_size": 0}, MedusaError, "hidden_size"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 8}},
            UnsupportedError,
            "8 bits",
        ),
    ],
)
def test_refusals(
    tmp_path: Path, changes: dict[str, Any], kind: type[MedusaError], said: str
) -> None:
    folder = write_config(tmp_path / "model", **changes)
    with pytest.raises(kind, match=said):
        find_base(str(folder))


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        find_base(str(tmp_path))
    folder = write_config(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        find_base(str(folder))
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="weight_map"):
        find_base(str(folder))
