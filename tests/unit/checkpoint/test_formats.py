# SPDX-License-Identifier: Apache-2.0
"""Golden tests: every published format gives the same canonical tensors."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import save_model

from tests.unit.checkpoint.support import (
    HEADS,
    HIDDEN,
    LAYERS,
    REFERENCE_CONFIG,
    VOCAB,
    assert_same,
    backbone,
    canonical_tensors,
    reference_names,
    write,
    write_sharded,
)
from vllm_medusa.checkpoint import load_heads
from vllm_medusa.heads import HeadsSpec

FULL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_hidden_layers": 32,
    "vocab_size": VOCAB,
    "medusa_num_heads": HEADS,
    "medusa_num_layers": LAYERS,
}
VLLM_CONFIG = {
    "model_type": "medusa",
    "num_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "vocab_size": VOCAB,
    "medusa_fc_bias": True,
    "max_paths": 64,
    "topk": 10,
}


def own_spec(**changes) -> HeadsSpec:
    values = {
        "num_heads": HEADS,
        "hidden_size": HIDDEN,
        "num_layers": LAYERS,
        "vocab_size": VOCAB,
        "projection": "own",
    }
    return HeadsSpec(**values | changes)


def test_a_reference_torch_file_with_a_wrong_config(tmp_path, caplog):
    tensors = canonical_tensors()
    write(tmp_path, "medusa_lm_head.pt", reference_names(tensors), REFERENCE_CONFIG)
    with caplog.at_level(logging.INFO):
        checkpoint = load_heads(tmp_path)
    assert (checkpoint.format, checkpoint.spec) == ("A", own_spec())
    assert_same(checkpoint.tensors, tensors)
    assert checkpoint.base_model == "lmsys/vicuna-7b-v1.3"
    assert checkpoint.notes == (
        "config says heads = 2 (medusa_num_heads), the tensors hold 3",
        "config says layers per head = 1 (medusa_num_layers), the tensors hold 2",
    )
    assert "the tensors hold 3" in caplog.text


def test_a_without_a_config_and_as_a_single_file(tmp_path):
    tensors = canonical_tensors()
    write(tmp_path, "heads.pt", reference_names(tensors))
    for path in (tmp_path, tmp_path / "heads.pt"):
        checkpoint = load_heads(path)
        assert checkpoint.folder == tmp_path
        assert checkpoint.base_model is None and checkpoint.notes == ()
        assert_same(checkpoint.tensors, tensors)


def test_a_with_layers_that_share_weights(tmp_path):
    """The reference puts one block in the list `num_layers` times."""
    tensors = canonical_tensors(heads=1)
    for part in ("weight", "bias"):
        tensors[f"blocks.0.layers.1.{part}"] = tensors[f"blocks.0.layers.0.{part}"]
    write(tmp_path, "medusa_lm_head.pt", reference_names(tensors), REFERENCE_CONFIG)
    assert_same(load_heads(tmp_path).tensors, tensors)


def test_b_with_shared_layers_left_out_of_the_file(tmp_path):
    """safetensors' save_model keeps one name of shared weights."""
    linear = torch.nn.Linear(HIDDEN, HIDDEN)
    block = torch.nn.Module()
    block.linear = linear
    projection = torch.nn.Linear(HIDDEN, VOCAB, bias=False)
    heads = torch.nn.ModuleList([torch.nn.Sequential(block, block, projection)])
    save_model(heads, str(tmp_path / "medusa_lm_head.safetensors"))
    checkpoint = load_heads(tmp_path)
    assert checkpoint.spec == own_spec(num_heads=1)
    for layer in range(2):
        assert torch.equal(
            checkpoint.tensors[f"blocks.0.layers.{layer}.weight"], linear.weight
        )
        assert torch.equal(
            checkpoint.tensors[f"blocks.0.layers.{layer}.bias"], linear.bias
        )
    first, second = (
        checkpoint.tensors[f"blocks.0.layers.{layer}.weight"] for layer in range(2)
    )
    assert first.data_ptr() == second.data_ptr()  # in memory once, as in the file


def test_b_reference_safetensors(tmp_path):
    tensors = canonical_tensors()
    named = reference_names(tensors)
    write(tmp_path, "medusa_lm_head.safetensors", named, REFERENCE_CONFIG)
    checkpoint = load_heads(tmp_path)
    assert (checkpoint.format, checkpoint.spec) == ("B", own_spec())
    assert_same(checkpoint.tensors, tensors)


def test_c_version_2_shares_the_lm_head(tmp_path):
    tensors = canonical_tensors(projection=False)
    config = REFERENCE_CONFIG | {"version": "2"}
    write(tmp_path, "medusa_lm_head.safetensors", reference_names(tensors), config)
    checkpoint = load_heads(tmp_path)
    expected = own_spec(projection="shared", vocab_size=None)
    assert (checkpoint.format, checkpoint.spec) == ("C", expected)
    assert_same(checkpoint.tensors, tensors)


@pytest.mark.parametrize(
    ("prefix", "format"), [("medusa_head.", "D"), ("medusa_heads.", "G")]
)
def test_d_and_g_heads_beside_a_backbone(tmp_path, prefix, format):
    tensors = canonical_tensors()
    named = backbone() | reference_names(tensors, prefix)
    write(tmp_path, "model.safetensors", named, FULL_CONFIG)
    checkpoint = load_heads(tmp_path)
    assert (checkpoint.format, checkpoint.spec) == (format, own_spec())
    assert_same(checkpoint.tensors, tensors)
    assert checkpoint.notes == ()


def test_d_opens_only_the_shards_that_hold_heads(tmp_path):
    tensors = canonical_tensors()
    named = reference_names(tensors, "medusa_head.")
    half = len(named) // 2
    shards = {
        "model-00001-of-00003.safetensors": backbone(),
        "model-00002-of-00003.safetensors": dict(list(named.items())[:half]),
        "model-00003-of-00003.safetensors": dict(list(named.items())[half:]),
    }
    write_sharded(tmp_path, shards, FULL_CONFIG)
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    checkpoint = load_heads(tmp_path)
    assert (checkpoint.format, checkpoint.spec) == ("D", own_spec())
    assert_same(checkpoint.tensors, tensors)


def test_d_reads_no_tensor_of_the_backbone(tmp_path, monkeypatch):
    from vllm_medusa.checkpoint.tensor_files import SafetensorsFile

    read = []
    original = SafetensorsFile.read
    monkeypatch.setattr(
        SafetensorsFile,
        "read",
        lambda self, name: read.append(name) or original(self, name),
    )
    named = backbone() | reference_names(canonical_tensors(), "medusa_head.")
    write(tmp_path, "model.safetensors", named, FULL_CONFIG)
    load_heads(tmp_path, num_heads=1)
    assert sorted(read) == [
        "medusa_head.0.0.linear.bias",
        "medusa_head.0.0.linear.weight",
        "medusa_head.0.1.linear.bias",
        "medusa_head.0.1.linear.weight",
        "medusa_head.0.2.weight",
    ]


def test_d_as_a_torch_file_and_with_peft_names(tmp_path):
    tensors = canonical_tensors()
    named = {"base_model.model.lm_head.weight": torch.ones(2)}
    named |= reference_names(tensors, "base_model.model.medusa_head.")
    write(tmp_path, "pytorch_model.bin", named, FULL_CONFIG)
    checkpoint = load_heads(tmp_path)
    assert checkpoint.format == "D"
    assert_same(checkpoint.tensors, tensors)


def test_heads_of_their_own_go_before_the_model_they_lie_in(tmp_path):
    tensors = canonical_tensors()
    write(tmp_path, "model.safetensors", backbone(), FULL_CONFIG)
    write(tmp_path, "medusa_lm_head.safetensors", reference_names(tensors))
    assert_same(load_heads(tmp_path).tensors, tensors)


def test_e_vllm(tmp_path):
    tensors = canonical_tensors()
    write(tmp_path, "model.safetensors", tensors, VLLM_CONFIG)
    checkpoint = load_heads(tmp_path)
    assert (checkpoint.format, checkpoint.spec) == ("E", own_spec())
    assert_same(checkpoint.tensors, tensors)
    assert checkpoint.notes == ()


def test_e_keeps_a_bias_that_the_config_denies(tmp_path):
    tensors = canonical_tensors()
    config = VLLM_CONFIG | {"medusa_fc_bias": False}
    write(tmp_path, "model.safetensors", tensors, config)
    checkpoint = load_heads(tmp_path)
    assert_same(checkpoint.tensors, tensors)
    assert checkpoint.notes == (
        "config says medusa_fc_bias = False, the tensors have biases",
    )


def test_e_without_bias(tmp_path):
    tensors = canonical_tensors(bias=False)
    config = VLLM_CONFIG | {"medusa_fc_bias": False}
    write(tmp_path, "model.safetensors", tensors, config)
    checkpoint = load_heads(tmp_path)
    assert checkpoint.spec == own_spec(block_bias=False)
    assert_same(checkpoint.tensors, tensors)


@pytest.mark.parametrize("name", ["lm_head.weight", "lm_heads.0.weight"])
def test_e_one_projection_for_all_heads(tmp_path, name):
    """vLLM reads `original_lm_head` under either name."""
    tensors = canonical_tensors(projection=False)
    matrix = torch.randn(VOCAB, HIDDEN)
    config = VLLM_CONFIG | {"original_lm_head": True}
    write(tmp_path, "model.safetensors", tensors | {name: matrix}, config)
    checkpoint = load_heads(tmp_path)
    assert checkpoint.spec == own_spec(projection="single")
    assert_same(checkpoint.tensors, tensors | {"lm_head.weight": matrix})


@pytest.mark.parametrize("reduced", [False, True])
def test_e_token_map(tmp_path, reduced):
    """The projections have the draft vocabulary's rows, or all, to be selected."""
    tensors = canonical_tensors()
    token_map = torch.tensor([7, 0, 10, 3], dtype=torch.int32)
    expected = dict(tensors)
    for head in range(HEADS):
        name = f"lm_heads.{head}.weight"
        expected[name] = tensors[name][token_map.long()]
    stored = expected if reduced else tensors
    config = VLLM_CONFIG | {"truncated_vocab_size": 4}
    write(tmp_path, "model.safetensors", stored | {"token_map": token_map}, config)
    checkpoint = load_heads(tmp_path)
    assert checkpoint.spec == own_spec(draft_vocab_size=4)
    assert checkpoint.tensors["token_map"].dtype == torch.int64
    assert_same(checkpoint.tensors, expected | {"token_map": token_map.long()})


@pytest.mark.parametrize("reduced", [False, True])
def test_first_heads_and_first_tokens(tmp_path, reduced):
    tensors = canonical_tensors()
    token_map = torch.tensor([7, 0, 10, 3])
    stored = dict(tensors)
    if reduced:
        for head in range(HEADS):
            name = f"lm_heads.{head}.weight"
            stored[name] = tensors[name][token_map]
    stored["token_map"] = token_map
    write(tmp_path, "model.safetensors", stored, VLLM_CONFIG)
    checkpoint = load_heads(tmp_path, num_heads=1, draft_vocab=2)
    assert checkpoint.spec == own_spec(num_heads=1, draft_vocab_size=2)
    expected = {k: v for k, v in tensors.items() if k.startswith("blocks.0.")}
    expected["lm_heads.0.weight"] = tensors["lm_heads.0.weight"][[7, 0]]
    assert_same(checkpoint.tensors, expected | {"token_map": torch.tensor([7, 0])})


def test_f_lepton(tmp_path):
    tensors = canonical_tensors()
    config = REFERENCE_CONFIG | {
        "base_model_name_or_path": "N/A",
        "decoding_strategy": "tree_decoding",
    }
    write(tmp_path, "medusa_lm_head.pt", reference_names(tensors), config)
    checkpoint = load_heads(tmp_path)
    assert (checkpoint.format, checkpoint.base_model) == ("F", None)
    assert_same(checkpoint.tensors, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("file", ["medusa_lm_head.pt", "medusa_lm_head.safetensors"])
def test_the_stored_dtype_stays(tmp_path, dtype, file):
    tensors = {k: v.to(dtype) for k, v in canonical_tensors().items()}
    write(tmp_path, file, reference_names(tensors))
    assert_same(load_heads(tmp_path).tensors, tensors)
