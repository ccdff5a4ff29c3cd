# SPDX-License-Identifier: Apache-2.0
"""Everything that is wrong with a checkpoint is refused by name."""

from __future__ import annotations

import json

import pytest
import torch

from tests.unit.checkpoint.support import (
    HIDDEN,
    VOCAB,
    backbone,
    canonical_tensors,
    reference_names,
    refused,
    write,
    write_sharded,
)
from vllm_medusa.checkpoint import load, load_heads
from vllm_medusa.errors import ConfigError


def without(*names: str):
    def change(tensors):
        for name in names:
            del tensors[name]

    return change


def put(name: str, tensor: torch.Tensor):
    return lambda tensors: tensors.update({name: tensor})


def spoil(name: str, value: float):
    def change(tensors):
        tensors[name].view(-1)[1] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("extra.weight", torch.ones(1)), "not known parts .*extra.weight"),
        (put("lm_heads.0.bias", torch.ones(VOCAB)), "lm_heads.0.bias"),
        (
            put("blocks.0.layers.0.linear.weight", torch.ones(HIDDEN, HIDDEN)),
            "blocks.0.layers.0.linear.weight",
        ),
        (put("blocks.99999.layers.0.weight", torch.ones(1)), "blocks.99999"),
        (
            put("blocks.7.layers.0.weight", torch.ones(HIDDEN, HIDDEN)),
            r"heads \[3, 4, 5, 6\] are missing",
        ),
        (
            put("blocks.0.layers.3.weight", torch.ones(HIDDEN, HIDDEN)),
            r"head 0 lacks layers \[2\]",
        ),
        (
            without("blocks.1.layers.1.weight", "blocks.1.layers.1.bias"),
            r"head 1 lacks layers \[1\]",
        ),
        (
            without(
                *(
                    f"blocks.1.layers.{layer}.{part}"
                    for layer in (0, 1)
                    for part in ("weight", "bias")
                )
            ),
            r"head 1 lacks layers \[0, 1\]",
        ),
        (without("blocks.2.layers.1.bias"), "missing: blocks.2.layers.1.bias"),
        (without("blocks.0.layers.0.weight"), "'blocks.0.layers.0.weight' is missing"),
        (without("lm_heads.1.weight"), "missing: lm_heads.1.weight"),
        (without("lm_heads.0.weight"), "projection of head 0 is missing"),
        (
            put("lm_head.weight", torch.ones(VOCAB, HIDDEN)),
            "do not fit .*lm_head.weight",
        ),
        (
            put("blocks.1.layers.0.weight", torch.ones(HIDDEN, HIDDEN + 1)),
            r"'blocks.1.layers.0.weight' has shape \[4, 5\], expected \[4, 4\]",
        ),
        (
            put("blocks.0.layers.0.weight", torch.ones(HIDDEN)),
            r"shape \[4\], a matrix is expected",
        ),
        (put("lm_heads.2.weight", torch.ones(VOCAB + 1, HIDDEN)), r"lm_heads.2.weight"),
        (
            put("blocks.0.layers.0.weight", torch.ones(HIDDEN, HIDDEN).int()),
            "'blocks.0.layers.0.weight' has dtype torch.int32",
        ),
        (
            put(
                "blocks.0.layers.0.weight",
                torch.ones(HIDDEN, HIDDEN).to(torch.float8_e4m3fn),
            ),
            "'blocks.0.layers.0.weight' has",
        ),
        (spoil("lm_heads.1.weight", torch.nan), "'lm_heads.1.weight' holds 1 values"),
        (
            spoil("blocks.0.layers.1.bias", torch.inf),
            "'blocks.0.layers.1.bias' holds 1",
        ),
        (put("token_map", torch.tensor([1, 2, 1])), "token 1 more than once"),
        (
            put("token_map", torch.tensor([1, VOCAB])),
            "ids 1 to 11; token ids are 0 to 10",
        ),
        (put("token_map", torch.tensor([-1, 2])), "ids -1 to 2"),
        (
            put("token_map", torch.tensor([1.0, 2.0])),
            "'token_map' has dtype torch.float",
        ),
        (put("token_map", torch.tensor([[1, 2]])), "one dimension is expected"),
        (put("token_map", torch.tensor([], dtype=torch.int64)), "at least 1, not 0"),
        (put("token_map", torch.arange(VOCAB + 1)), "larger than the base vocabulary"),
    ],
)
@pytest.mark.parametrize("file", ["model.safetensors", "model.pt"])
def test_wrong_tensors(tmp_path, file, change, message):
    tensors = canonical_tensors()
    change(tensors)
    refused(write(tmp_path, file, tensors), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("0.1.linear.weight", "0.1.linear.bias"), r"head 0 lacks layers \[1\]"),
        (put("0.3.weight", torch.ones(VOCAB, HIDDEN)), "the same tensor"),
        (put("1.2.bias", torch.ones(VOCAB)), "not known parts .*1.2.bias"),
        (without("0.2.weight"), "projection of head 0 is missing"),
    ],
)
def test_wrong_tensors_under_reference_names(tmp_path, change, message):
    tensors = reference_names(canonical_tensors())
    change(tensors)
    refused(write(tmp_path, "medusa_lm_head.pt", tensors), message)


def test_a_projection_in_a_layers_place(tmp_path):
    tensors = reference_names(canonical_tensors())
    tensors["0.1.weight"] = tensors.pop("0.2.weight")
    refused(write(tmp_path, "medusa_lm_head.pt", tensors), "where a layer stands")


def test_a_model_without_heads(tmp_path):
    named = {"token_map": torch.arange(3)}
    refused(write(tmp_path, "model.safetensors", named), "holds no Medusa heads")
    model = {k: v for k, v in backbone().items() if k.startswith("model.embed")}
    refused(write(tmp_path, "model.safetensors", model), "model.embed_tokens.weight")


def test_quantised_heads_beside_a_backbone(tmp_path):
    named = reference_names(canonical_tensors(), "medusa_heads.")
    named["medusa_heads.0.0.linear.weight_scale"] = torch.ones(1)
    write(tmp_path, "model.safetensors", backbone() | named)
    refused(tmp_path, "'blocks.0.layers.0.weight' has a scale but dtype")


def test_too_many_heads(tmp_path):
    tensors = canonical_tensors(heads=65, layers=1, projection=False)
    write(tmp_path, "model.safetensors", tensors)
    refused(tmp_path, "num_heads is 65; at most 64")


def test_asking_for_more_than_there_is(tmp_path):
    write(tmp_path, "model.safetensors", canonical_tensors())
    with pytest.raises(ConfigError, match=r"num_heads is 4.* choose 1 to 3"):
        load_heads(tmp_path, num_heads=4)
    with pytest.raises(ConfigError, match="has no token_map"):
        load_heads(tmp_path, draft_vocab=4)


def test_places_without_heads(tmp_path):
    refused(tmp_path / "nowhere", "do not exist")
    refused(tmp_path / "heads.pt", "do not exist")
    refused(tmp_path, "holds no heads file")
    (tmp_path / "heads.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "heads.gguf", "no tensor file")
    write(tmp_path, "a.pt", canonical_tensors())
    write(tmp_path, "b.pt", canonical_tensors())
    refused(tmp_path, "holds no heads file")
    refused(tmp_path, "revision 'main' is for Hugging Face ids", revision="main")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_damaged_config(tmp_path, text):
    write(tmp_path, "model.safetensors", canonical_tensors())
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, "config.json")


def test_an_endless_config(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "_MAX_CONFIG_BYTES", 100)
    write(tmp_path, "model.safetensors", canonical_tensors())
    (tmp_path / "config.json").write_text(f'{{"x": "{"y" * 100}"}}')
    refused(tmp_path, r"config.json is larger than 100 bytes")


def test_damaged_indexes(tmp_path):
    shards = {"a.safetensors": canonical_tensors()}
    write_sharded(tmp_path, shards, {})
    (tmp_path / "a.safetensors").unlink()
    refused(tmp_path, "a.safetensors does not exist")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}))
    refused(tmp_path, "points outside its folder")
    index.write_text(json.dumps({"weight_map": {"x": 3}}))
    refused(tmp_path, "has no weight_map")


def test_one_tensor_in_two_shards(tmp_path):
    shards = {"a.safetensors": canonical_tensors(), "b.safetensors": {}}
    write_sharded(tmp_path, shards, {})
    write(tmp_path, "b.safetensors", canonical_tensors())
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path, "is in .*a.safetensors and in .*b.safetensors")
