# SPDX-License-Identifier: Apache-2.0
"""Random heads of every kind, and vLLM models that are only an LM head."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import torch
from torch import nn

from vllm_medusa.checkpoint import HeadsCheckpoint
from vllm_medusa.heads import HeadsSpec

# No multiples of vLLM's vocabulary padding (64), nor of two ranks.
VOCAB = 165
HIDDEN = 25
DRAFT_VOCAB = 131

BLOCKS = ("residual", "mlp", "layernorm")
PROJECTIONS = ("shared", "own", "single", "low_rank")


def make_spec(
    block: str,
    projection: str,
    *,
    mapped: bool,
    num_heads: int = 3,
    num_layers: int = 2,
    bias: bool = True,
) -> HeadsSpec:
    return HeadsSpec(
        num_heads=num_heads,
        hidden_size=HIDDEN,
        num_layers=num_layers,
        vocab_size=VOCAB,
        block=block,
        # Odd, so that two ranks get unequal parts.
        intermediate_size=37 if block == "mlp" else None,
        block_bias=bias,
        projection=projection,
        rank=5 if projection == "low_rank" else None,
        draft_vocab_size=DRAFT_VOCAB if mapped else None,
    )


def all_specs() -> list[HeadsSpec]:
    """Every block x projection x token_map, with and without bias in turn."""
    return [
        make_spec(block, projection, mapped=mapped, bias=index % 3 != 2)
        for index, (block, projection, mapped) in enumerate(
            product(BLOCKS, PROJECTIONS, (False, True))
        )
    ]


def spec_name(spec: HeadsSpec) -> str:
    mapped = "mapped" if spec.draft_vocab_size else "full"
    bias = "bias" if spec.block_bias else "nobias"
    return f"{spec.block}-{spec.projection}-{mapped}-{bias}"


def random_tensors(spec: HeadsSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * 0.3
        for name, shape in spec.tensor_shapes().items()
    }
    if spec.draft_vocab_size is not None:
        order = torch.randperm(spec.vocab_size, generator=generator)
        tensors["token_map"] = order[: spec.draft_vocab_size]
    return tensors


def make_checkpoint(spec: HeadsSpec, seed: int = 0) -> HeadsCheckpoint:
    return HeadsCheckpoint(
        spec=spec,
        tensors=random_tensors(spec, seed),
        path=Path("heads"),
        format="canonical",
        base_model=None,
        config={},
    )


class TinyModel(nn.Module):
    """What `MedusaHeads` reads of a vLLM model: its LM head, here with a bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        super().__init__()
        vocab, hidden = weight.shape
        self.lm_head = ParallelLMHead(
            vocab, hidden, bias=bias is not None, params_dtype=weight.dtype
        )
        self.lm_head.weight_loader(self.lm_head.weight, weight)
        if bias is not None:
            self.lm_head.weight_loader(self.lm_head.bias, bias)
        # Padding rows must never be proposed: make them win if they are read.
        rows = self.lm_head.num_org_embeddings_per_partition
        self.lm_head.weight.data[rows:] = 100.0


def lm_head_weight(seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VOCAB, HIDDEN, generator=generator)
