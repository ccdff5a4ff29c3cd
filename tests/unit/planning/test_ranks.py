# SPDX-License-Identifier: Apache-2.0
"""Planned bytes of a rank are those of the modules that two ranks build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.heads.support import (
    HIDDEN,
    VOCAB,
    TinyModel,
    all_specs,
    lm_head_weight,
    make_checkpoint,
)
from tests.unit.ranks import RANKS, as_rank, run_ranks
from vllm_medusa.heads import MedusaHeads
from vllm_medusa.planning.base_model import BaseModel, base_model
from vllm_medusa.planning.heads import rank_heads
from vllm_medusa.planning.weights import rank_weights

# One KV head, so that both ranks hold it; a vocabulary that needs padding.
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "attention_bias": True,
    "mlp_bias": True,
}


class Config:
    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def heads_base() -> BaseModel:
    return base_model("tiny", Config(**{**CONFIG, "hidden_size": HIDDEN}), "", None)


def base_bytes(folder: str) -> int:
    """Parameters of vLLM's own Llama on this rank."""
    from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
    from vllm.model_executor.models.llama import LlamaForCausalLM

    config = VllmConfig(
        model_config=ModelConfig(
            model=folder, dtype="float32", skip_tokenizer_init=True
        )
    )
    with set_current_vllm_config(config):
        model = LlamaForCausalLM(vllm_config=config)
    return sum(parameter.nbytes for parameter in model.parameters())


def run_rank(rank: int, size: int, folder: str) -> None:
    """Body of one process: bytes of the base's and of all heads' modules, to a file."""
    with as_rank(rank, size, folder):
        base = TinyModel(lm_head_weight(), None)
        heads = [
            MedusaHeads.from_checkpoint(make_checkpoint(spec), base).num_bytes
            for spec in all_specs()
        ]
        weights = base_bytes(folder)
    torch.save((weights, heads), f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, list[int]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    architecture = {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(CONFIG | architecture))
    return run_ranks(run_rank, folder)


def test_base(two_ranks: list[tuple[int, list[int]]]) -> None:
    model = base_model("tiny", Config(**CONFIG), "", None)
    planned = rank_weights(model, RANKS, "float32", None)
    assert [weights for weights, _ in two_ranks] == [planned.total] * RANKS


def test_heads(two_ranks: list[tuple[int, list[int]]]) -> None:
    """No rank holds more than planned, and the first holds just that."""
    base = heads_base()
    planned = [rank_heads(spec, base, RANKS, "float32").total for spec in all_specs()]
    assert two_ranks[0][1] == planned
    assert all(
        bytes_ <= most for bytes_, most in zip(two_ranks[1][1], planned, strict=True)
    )
