# SPDX-License-Identifier: Apache-2.0
"""Adapters and full weights: what they train, the original beside, merging."""

from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from tests.unit.train.medusa2 import tiny
from vllm_medusa.errors import ConfigError, UnsupportedError
from vllm_medusa.train.backbone import load_backbone
from vllm_medusa.train.medusa2.full import FullBackbone
from vllm_medusa.train.medusa2.held_out import batches
from vllm_medusa.train.medusa2.lora import LoraBackbone
from vllm_medusa.train.medusa2.options import AdapterOptions
from vllm_medusa.train.medusa2.tuned import (
    TunedBackbone,
    check_plain_lm_head,
    is_tied,
    untie,
)

LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def moved(backbone: TunedBackbone) -> TunedBackbone:
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in backbone.trainable().values():
            weight += 0.05 * torch.randn(weight.shape)
    return backbone


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    torch.manual_seed(2)
    return model(torch.randint(3, tiny.VOCAB_SIZE, (2, 20))).logits


def test_adapters_are_on_all_linear_layers_and_add_nothing_at_first(base: Path) -> None:
    model = tiny.load(base)
    before = logits(model)
    backbone = LoraBackbone(model, AdapterOptions(rank=4))
    assert {name.rsplit(".", 1)[1] for name in backbone.layers} == LINEARS
    assert logits(model).equal(before)
    trained = backbone.trainable()
    assert all(".lora_" in name for name in trained)
    # q, k, v, o, and the MLP's three: rank * (inputs + outputs)
    sizes = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
    assert sum(p.numel() for p in trained.values()) == 4 * sum(map(sum, sizes))
    with_head = LoraBackbone(tiny.load(base), AdapterOptions(rank=4, lm_head=True))
    assert len(with_head.layers) == len(backbone.layers) + 1


def test_adapters_off_is_the_original(base: Path) -> None:
    original = tiny.load(base)
    (batch,) = batches(tiny.written(base, 300)[:3], 3)
    backbone = moved(LoraBackbone(tiny.load(base), AdapterOptions(lm_head=True)))
    backbone.train()
    with torch.no_grad():
        plain = TunedBackbone(original).hidden(batch)
    assert backbone.original_hidden(batch).equal(plain)
    assert backbone.original_lm_head().equal(original.lm_head.weight)
    assert backbone.training
    assert backbone.model.training
    backbone.eval()
    assert not backbone.hidden(batch).equal(plain)
    assert not backbone.lm_head().equal(original.lm_head.weight)
    assert all(weight.requires_grad for weight in backbone.trainable().values())


@pytest.mark.parametrize("kind", ["lora", "lora with LM head", "full"])
def test_merged_weights_are_the_tuned_function(base: Path, kind: str) -> None:
    model = tiny.load(base)
    before = logits(model)
    backbone: TunedBackbone = (
        FullBackbone(model, None)
        if kind == "full"
        else LoraBackbone(model, AdapterOptions(lm_head="LM" in kind))
    )
    moved(backbone).eval()
    tuned = logits(model)
    assert (tuned - before).abs().max() > 0.1
    merged = tiny.load(base)
    backbone.merge_into(merged)
    torch.testing.assert_close(logits(merged), tuned, rtol=1e-4, atol=1e-4)
    assert set(merged.state_dict()) == set(tiny.load(base).state_dict())


def test_sums_are_rounded_once(base: Path) -> None:
    backbone = moved(LoraBackbone(tiny.load(base), AdapterOptions()))
    exact = tiny.load(base)
    backbone.merge_into(exact)
    rounded = load_backbone(str(base), torch.bfloat16, None, "cpu")
    start = {name: w.float() for name, w in rounded.named_parameters()}
    backbone.merge_into(rounded)
    name = "model.layers.0.mlp.up_proj.weight"
    delta = backbone.layers[name.removesuffix(".weight")].get_delta_weight("default")
    expected = (start[name] + delta).bfloat16()
    assert dict(rounded.named_parameters())[name].equal(expected)
    # what has no adapter stays as it is
    name = "model.embed_tokens.weight"
    assert dict(exact.named_parameters())[name].equal(
        dict(tiny.load(base).named_parameters())[name]
    )


def test_adapter_on_a_tied_lm_head_is_refused_unless_untied(
    tied: Path, tmp_path: Path
) -> None:
    model = tiny.load(tied)
    with pytest.raises(ConfigError, match="--untie"):
        LoraBackbone(model, AdapterOptions(lm_head=True))
    untie(model)
    assert not is_tied(model)
    backbone = moved(LoraBackbone(model, AdapterOptions(lm_head=True))).eval()
    tuned = logits(model)
    merged = tiny.load(tied)
    untie(merged)
    backbone.merge_into(merged)
    merged.save_pretrained(tmp_path)
    read = tiny.load(tmp_path)
    assert not read.config.tie_word_embeddings
    assert not is_tied(read)
    assert not read.lm_head.weight.equal(read.model.embed_tokens.weight)
    assert read.model.embed_tokens.weight.equal(
        tiny.load(tied).model.embed_tokens.weight
    )
    torch.testing.assert_close(logits(read), tuned, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_tied_model_stays_tied(tied: Path, tmp_path: Path, kind: str) -> None:
    model = tiny.load(tied)
    backbone: TunedBackbone = (
        FullBackbone(model, None)
        if kind == "full"
        else LoraBackbone(model, AdapterOptions())
    )
    moved(backbone).eval()
    merged = tiny.load(tied)
    backbone.merge_into(merged)
    merged.save_pretrained(tmp_path)
    read = tiny.load(tmp_path)
    assert is_tied(read)
    torch.testing.assert_close(logits(read), logits(model), rtol=1e-4, atol=1e-4)


def test_full_weights_keep_a_copy_of_the_original(base: Path) -> None:
    (batch,) = batches(tiny.written(base, 300)[:3], 3)
    backbone = FullBackbone(tiny.load(base), torch.float32)
    assert not any("original" in name for name in backbone.trainable())
    moved(backbone)
    with torch.no_grad():
        plain = TunedBackbone(tiny.load(base)).hidden(batch)
    assert backbone.original_hidden(batch).equal(plain)
    assert backbone.original_lm_head().equal(tiny.load(base).lm_head.weight)


def test_copy_of_the_original_has_no_dropout(base: Path) -> None:
    (batch,) = batches(tiny.written(base, 300)[:3], 3)
    model = tiny.load(base)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with torch.no_grad():
        plain = TunedBackbone(model).hidden(batch)
    backbone = FullBackbone(model, torch.float32).train()
    assert not backbone.hidden(batch).equal(plain)
    assert backbone.original_hidden(batch).equal(plain)
    assert backbone.model.training


def test_capped_logits_are_refused(base: Path) -> None:
    check_plain_lm_head(tiny.load(base))
    torch.manual_seed(0)
    gemma = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=32,
            final_logit_softcapping=0.5,
        )
    )
    with pytest.raises(UnsupportedError, match="caps its logits"):
        check_plain_lm_head(gemma)
