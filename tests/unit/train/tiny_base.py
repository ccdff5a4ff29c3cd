# SPDX-License-Identifier: Apache-2.0
"""A tiny random base model for transformers alone, and answers for it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig
from transformers import MistralForCausalLM as Mistral

from vllm_medusa.train.answers import Answer

VOCAB, HIDDEN = 64, 64

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def llama(**changes: int) -> LlamaForCausalLM:
    """Its next token hangs mostly on the last one, so that heads can learn it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**_SIZES | changes)).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(5)
        model.lm_head.weight.mul_(16)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.02)
    return model


def mistral(window: int) -> Mistral:
    """With a sliding window of so many tokens."""
    torch.manual_seed(0)
    return Mistral(MistralConfig(**_SIZES, sliding_window=window)).eval()


def save(folder: Path, **changes: int) -> Path:
    llama(**changes).save_pretrained(folder)
    return folder


def answers(count: int, seed: int = 0, longest: int = 20) -> list[Answer]:
    """Random answers to random prompts, some of them very short."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(most: int) -> list[int]:
        size = int(torch.randint(1, most + 1, (1,), generator=generator))
        return torch.randint(VOCAB, (size,), generator=generator).tolist()

    return [Answer(f"p{n}", tokens(longest), tokens(8)) for n in range(count)]
