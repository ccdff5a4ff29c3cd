# SPDX-License-Identifier: Apache-2.0
"""The same heads in the format of vLLM 0.32's own Medusa, where it can hold them.

That model (`vllm/model_executor/models/medusa.py`) knows residual blocks only, and a
full-vocabulary projection for each head or one for all. A low-rank projection is
multiplied out. A reduced draft vocabulary is widened to the full one by giving every
token outside it the row of the draft token with the lowest id: ties go to the lowest
id, so such a token is never guessed unless its id is lower still.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_medusa.files import atomic_path

if TYPE_CHECKING:
    import torch


class SkipVariant(Exception):  # noqa: N818 - not an error: the report says why
    """This variant cannot run here; the message says why."""


@dataclass(frozen=True)
class UpstreamHeads:
    """Where the converted heads lie, and how many there are."""

    folder: Path
    num_heads: int


def widen(
    projection: torch.Tensor,  # [draft_vocab, hidden]
    token_map: torch.Tensor,  # [draft_vocab] int64
    vocab_size: int,
) -> torch.Tensor:
    """A projection over a draft vocabulary as one over all tokens [vocab, hidden]."""
    lowest = int(token_map.argmin())
    full = projection[lowest].repeat(vocab_size, 1)
    full[token_map] = projection
    return full


def upstream_tensors(
    spec: Any, tensors: dict[str, torch.Tensor], base_projection: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Canonical tensors under the names and shapes of vLLM's Medusa.

    `spec` is the HeadsSpec, `base_projection` the base's LM head [vocab, hidden], used
    where the heads share it. SkipVariant if vLLM's format cannot hold the block.
    """
    if spec.block != "residual":
        raise SkipVariant(f"vLLM's own Medusa has no block of kind {spec.block!r}")
    vocab_size = base_projection.shape[0]
    token_map = tensors.get("token_map")
    result = {
        name: tensor for name, tensor in tensors.items() if name.startswith("blocks.")
    }

    def full(projection: torch.Tensor) -> torch.Tensor:
        if projection.shape[0] == vocab_size or token_map is None:
            return projection
        return widen(projection, token_map, vocab_size)

    if spec.projection == "shared":
        result["lm_head.weight"] = base_projection
    elif spec.projection == "single":
        result["lm_head.weight"] = full(tensors["lm_head.weight"])
    else:
        for head in range(spec.num_heads):
            prefix = f"lm_heads.{head}"
            if spec.projection == "own":
                projection = tensors[f"{prefix}.weight"]
            else:
                up, down = (
                    tensors[f"{prefix}.up.weight"],
                    tensors[f"{prefix}.down.weight"],
                )
                projection = up @ down
            result[f"{prefix}.weight"] = full(projection)
    return {name: tensor.contiguous() for name, tensor in result.items()}


def base_projection(model: Path) -> torch.Tensor:
    """The LM head of the model in a local folder [vocab, hidden]; tied ones too.

    SkipVariant if none of its safetensors files has it.
    """
    from safetensors import safe_open

    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        for file in sorted(model.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118 - not a mapping
                    return tensors.get_tensor(name)
    raise SkipVariant(f"no LM head found in {model}")


def write_upstream_heads(heads: str, model: Path, folder: Path) -> UpstreamHeads:
    """Convert `heads` (as `load_heads` takes them) for the model in folder `model`.

    SkipVariant if vLLM's format cannot hold them.
    """
    from safetensors.torch import save_file

    from vllm_medusa.checkpoint import load_heads

    checkpoint = load_heads(heads)
    spec = checkpoint.spec
    base = base_projection(model)
    tensors = upstream_tensors(spec, dict(checkpoint.tensors), base)
    config = {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "num_heads": spec.num_heads,
        "num_hidden_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "vocab_size": base.shape[0],
        "truncated_vocab_size": base.shape[0],
        "medusa_fc_bias": spec.block_bias,
        "original_lm_head": "lm_head.weight" in tensors,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "config.json") as path:
        path.write_text(json.dumps(config, indent=2) + "\n")
    with atomic_path(folder / "model.safetensors") as path:
        save_file(tensors, path)
    return UpstreamHeads(folder, spec.num_heads)
