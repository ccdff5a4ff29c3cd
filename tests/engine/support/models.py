# SPDX-License-Identifier: Apache-2.0
"""Tiny random base models of several families, with a byte-level tokenizer.

A freshly initialised model is useless here: its logits are flat, and greedy decoding
is stuck on one token. These models are initialised wide instead. Each token is followed
by one of a few others, and attention decides by which, so that greedy text wanders,
a head can guess some of it, and the second and third guess are right often enough for
siblings to be accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
PAD, BOS, EOS = range(3)
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256 + 61
"""Special tokens, all bytes, and some pairs of letters."""
CHAT_TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """One architecture: a transformers config class and its options."""

    name: str
    config_class: type
    options: dict[str, Any] = field(default_factory=dict)


_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("llama", LlamaConfig, {"tie_word_embeddings": False}),
        Family(
            "llama_tied",
            LlamaConfig,
            {"num_key_value_heads": 1, "head_dim": 64, "tie_word_embeddings": True},
        ),
        Family(
            "qwen2",
            Qwen2Config,
            # Qwen2 has no head_dim option: 128 / 4 = 32.
            {"hidden_size": 128, "tie_word_embeddings": False},
        ),
        Family("mistral", MistralConfig, {"sliding_window": 40}),
        Family("gemma", GemmaConfig, {"head_dim": 64}),
        Family(
            "gemma2",
            Gemma2Config,
            {
                "head_dim": 64,
                "query_pre_attn_scalar": 64,
                "sliding_window": 40,
                "attn_logit_softcapping": 3.0,
                "final_logit_softcapping": 30.0,
            },
        ),
    )
}


def build_tokenizer(folder: Path) -> None:
    """Save a byte-level BPE tokenizer of `VOCAB_SIZE` entries with a chat template.

    Any text round-trips.
    """
    vocab = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    for char in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[char] = len(vocab)
    merges = []
    for first in "abcdefghi":
        for second in "aeioudnrst":
            if len(vocab) < VOCAB_SIZE and first != second:
                merges.append((first, second))
                vocab[first + second] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


_LOGIT_STD = 2.5
_ATTENTION_GAIN = 0.15
_MLP_GAIN = 0.2
_TIED_MLP_GAIN = 8.0


@torch.no_grad()
def _widen(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Initialise so that logits are spread and greedy decoding keeps moving.

    The embedding has unit size in the residual stream, and attention adds little noise
    to it. With a tied embedding each token would predict itself, so there the last
    layer's MLP drowns the embedding.
    """
    config = model.config
    is_gemma = config.model_type.startswith("gemma")
    # Gemma multiplies embeddings by sqrt(hidden size), and its norms by 1 + weight.
    embedding_std = config.hidden_size**-0.5 if is_gemma else 1.0
    norm_offset = 1.0 if is_gemma else 0.0
    loud_layer = config.num_hidden_layers - 1 if config.tie_word_embeddings else -1
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        mlp_gain = _TIED_MLP_GAIN if f"layers.{loud_layer}." in name else _MLP_GAIN
        fan_in_std = parameter.shape[-1] ** -0.5
        if name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif "embed_tokens" in name:
            parameter.copy_(noise * embedding_std)
        elif "lm_head" in name:
            parameter.copy_(noise * _LOGIT_STD * fan_in_std)
        elif "o_proj" in name:
            parameter.copy_(noise * _ATTENTION_GAIN * fan_in_std)
        elif "down_proj" in name:
            parameter.copy_(noise * mlp_gain * fan_in_std)
        elif parameter.dim() == 2:
            parameter.copy_(noise * 1.5 * fan_in_std)
        # Gemma 2 normalises what attention and the MLP add: the gain goes there.
        elif "post_attention_layernorm" in name and config.model_type == "gemma2":
            parameter.fill_(_ATTENTION_GAIN - norm_offset)
        elif "post_feedforward_layernorm" in name:
            parameter.fill_(mlp_gain - norm_offset)
    if config.tie_word_embeddings:
        scale = _LOGIT_STD / (embedding_std * config.hidden_size**0.5)
        model.model.norm.weight.fill_(scale - norm_offset)


def build_model(family: str, folder: Path, *, seed: int = 0, **options: Any) -> Path:
    """Make and save a tiny model of `family` with its tokenizer; return the folder."""
    spec = FAMILIES[family]
    config = spec.config_class(**{**_COMMON, **spec.options, **options})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _widen(model, torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    build_tokenizer(folder)
    return folder
