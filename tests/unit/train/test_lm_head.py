# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.train import tiny_base
from vllm_medusa.errors import CheckpointError
from vllm_medusa.train import lm_head
from vllm_medusa.train.lm_head import read_lm_head


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_size", ["1GB", "40KB"], ids=["one file", "shards"])
def test_is_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_size: str, tied: bool
) -> None:
    model = tiny_base.llama(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "40KB")
    monkeypatch.setattr(lm_head, "load_backbone", None)
    assert read_lm_head(str(tmp_path)).equal(model.lm_head.weight.bfloat16())


def test_the_rest_of_the_model_may_be_quantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_medusa.train.backbone import load_backbone

    tiny_base.save(tmp_path / "plain")
    quantised = load_backbone(str(tmp_path / "plain"), torch.float32, "4bit", "cpu")
    quantised.save_pretrained(tmp_path / "quantised")
    monkeypatch.setattr(lm_head, "load_backbone", None)
    found = read_lm_head(str(tmp_path / "quantised"))
    assert found.equal(tiny_base.llama().lm_head.weight.bfloat16())


def test_other_files_are_loaded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(*arguments: Any) -> Any:
        loaded.append(arguments)
        return tiny_base.llama()

    tiny_base.save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    monkeypatch.setattr(lm_head, "load_backbone", load)
    expected = tiny_base.llama().lm_head.weight.bfloat16()
    assert read_lm_head(str(tmp_path)).equal(expected)
    assert loaded == [(str(tmp_path), torch.bfloat16, None, "cpu")]


def test_float8_is_left_to_its_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_base.save(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, file)
    monkeypatch.setattr(lm_head, "load_backbone", lambda *_: tiny_base.llama())
    expected = tiny_base.llama().lm_head.weight.bfloat16()
    assert read_lm_head(str(tmp_path)).equal(expected)


def test_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        read_lm_head(str(tmp_path / "none"))
