# SPDX-License-Identifier: Apache-2.0
"""Models to measure by shape alone: a config and random weights made where they run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_medusa.files import atomic_path
from vllm_medusa.heads.spec import HeadsSpec

NUM_HEADS = 5


@dataclass(frozen=True)
class Shape:
    """A Llama architecture without weights.

    `parameters` that decide a step's time: sizes as in the published config.json. The
    published `max_positions` is overruled when a longer context is measured.
    """

    name: str
    hidden_size: int
    layers: int
    attention_heads: int
    kv_heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.attention_heads

    def num_weights(self) -> int:
        """Weights of the model, norms left out."""
        kv_size = self.kv_heads * self.head_size
        attention = 2 * self.hidden_size * (self.hidden_size + kv_size)
        mlp = 3 * self.hidden_size * self.intermediate_size
        embeddings = 2 * self.vocab_size * self.hidden_size
        return self.layers * (attention + mlp) + embeddings

    def heads_spec(self) -> HeadsSpec:
        """Heads as the reference has them: a residual block and a projection each."""
        return HeadsSpec(
            num_heads=NUM_HEADS,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            projection="own",
        )

    def kv_bytes_per_token(self, element_size: int) -> int:
        """Bytes of keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * element_size

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.attention_heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "bfloat16",
        }

    def config_text(self) -> bytes:
        """config.json as it is written."""
        return (json.dumps(self.config(), indent=2) + "\n").encode()


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("vicuna-7b", 4096, 32, 32, 32, 11008, 32000, 4096),
        Shape("vicuna-13b", 5120, 40, 40, 40, 13824, 32000, 4096),
        # To try the plumbing on any machine.
        Shape("tiny", 128, 2, 4, 4, 256, 512, 2048),
    )
}
"""Vicuna v1.5 and a toy, by name."""


def write_model(shape: Shape, folder: Path) -> Path:
    """Write config.json, which is all that `load_format="dummy"` needs."""
    with atomic_path(folder / "config.json") as temporary:
        temporary.write_bytes(shape.config_text())
    return folder


def write_heads(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """Write random heads for `shape`: residual blocks and projections of their own.

    bfloat16; a finished folder of an earlier run is kept. Their guesses are noise, so
    next to no draft is accepted and every step advances by one token.
    """
    if (folder / "config.json").is_file():
        return folder
    import torch

    from vllm_medusa.checkpoint import save_heads

    spec = shape.heads_spec()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, size in spec.tensor_shapes().items():
        noise = torch.randn(size, generator=generator, device=device)
        tensors[name] = (noise * shape.hidden_size**-0.5).to("cpu", torch.bfloat16)
    return save_heads(folder, spec, tensors, base_model=shape.name)
