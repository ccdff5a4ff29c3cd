# SPDX-License-Identifier: Apache-2.0
"""The models that are measured, with their heads and trees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import SHAPES, Shape, write_heads, write_model

SMOLLM = "smollm2-135m"
MODELS = (SMOLLM, *SHAPES)


@dataclass(frozen=True)
class Model:
    """A model with its heads.

    `tree` names a tree of 63 nodes, best first, of which a row count takes the first
    so many. `weight_bytes` counts the model's weights in bfloat16, `head_bytes` those
    of the heads, `kv_bytes` the keys and values of one token.
    """

    name: str
    folder: Path
    heads: Path
    tree: str
    random_weights: bool
    weight_bytes: int
    head_bytes: int
    kv_bytes: int

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of `LLM` that belong to the model."""
        arguments: dict[str, Any] = {"model": str(self.folder)}
        if self.random_weights:
            arguments |= {"load_format": "dummy", "skip_tokenizer_init": True}
        return arguments

    def medusa(self, rows: int, attention: str) -> dict[str, Any]:
        """`speculative_config` for trees of `rows` rows, the root included."""
        config: dict[str, Any] = {
            "method": "medusa",
            "model": str(self.heads),
            "tree": self.tree,
            "num_speculative_tokens": rows - 1,
            "num_speculative_tokens_per_batch_size": None,
        }
        return config if attention == "auto" else {**config, "attention": attention}


def find_model(name: str, work: Path) -> Model:
    """The model called `name`; shapes get their folders made under `work`.

    ValueError if there is none of that name; CheckpointError if the default model is
    not installed.
    """
    if name == SMOLLM:
        return _default_model()
    if name not in SHAPES:
        raise ValueError(f"no model {name!r}: choose from {', '.join(MODELS)}")
    shape = SHAPES[name]
    size = "13b" if "13b" in name else "7b"
    return Model(
        name=name,
        folder=write_model(shape, work / name),
        heads=write_heads(shape, work / f"{name}-heads"),
        tree=f"vicuna_{size}_stage2",
        random_weights=True,
        weight_bytes=2 * shape.num_weights(),
        head_bytes=2 * shape.heads_spec().num_parameters,
        kv_bytes=shape.kv_bytes_per_token(2),
    )


def _default_model() -> Model:
    from vllm_medusa.checkpoint import load_heads
    from vllm_medusa.default_model import heads_path, model_path

    folder, heads = model_path(), heads_path()
    config = json.loads((folder / "config.json").read_text())
    shape = Shape(
        name=SMOLLM,
        hidden_size=config["hidden_size"],
        layers=config["num_hidden_layers"],
        attention_heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
    )
    return Model(
        name=SMOLLM,
        folder=folder,
        heads=heads,
        tree="optimal:63",
        random_weights=False,
        weight_bytes=2 * shape.num_weights(),
        head_bytes=2 * load_heads(heads).spec.num_parameters,
        kv_bytes=shape.kv_bytes_per_token(2),
    )
