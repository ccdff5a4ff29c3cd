# SPDX-License-Identifier: Apache-2.0
"""Writing heads in the canonical form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vllm_medusa.checkpoint.checks import check_contents
from vllm_medusa.checkpoint.infer import check_shapes
from vllm_medusa.checkpoint.naming import CANONICAL
from vllm_medusa.checkpoint.tensor_info import TensorInfo
from vllm_medusa.errors import CheckpointError
from vllm_medusa.files import atomic_path
from vllm_medusa.heads.spec import HeadsSpec
from vllm_medusa.locks import exclusive


def save_heads(
    folder: str | Path,
    spec: HeadsSpec,
    tensors: Mapping[str, torch.Tensor],
    *,
    base_model: str | None = None,
    extra_config: Mapping[str, Any] | None = None,
) -> Path:
    """Write model.safetensors and config.json in the canonical form.

    Residual heads with projections of their own are written so that vLLM 0.32's
    own Medusa reads them too.

    Args:
        folder: made if need be; other files in it stay.
        spec: describes `tensors` exactly.
        tensors: under canonical names, as `spec.tensor_shapes()` lists them.
        base_model: name or path of the base model, for the reader's benefit.
        extra_config: further keys of config.json, such as a training recipe.

    Returns:
        The folder.

    Raises:
        CheckpointError: the tensors are not those of `spec`, or hold NaN; an
            extra key would overwrite one that describes the heads.
        OutputError: there is no room, or no permission to write.
    """
    folder = Path(folder)
    where = str(folder)
    infos = {
        name: TensorInfo(tuple(tensor.shape), tensor.dtype)
        for name, tensor in tensors.items()
    }
    check_shapes(infos, spec, where=where)
    check_contents(tensors, spec, where=where)
    clash = sorted(DESCRIBING_KEYS & set(extra_config or {}))
    if clash:
        raise CheckpointError(f"extra_config must not set {', '.join(clash)}")
    described = _describe(spec, base_model)
    config = {key: value for key, value in described.items() if value is not None}
    config |= extra_config or {}
    text = json.dumps(config, indent=2) + "\n"
    # The two files of one process, should several write.
    with exclusive(folder, wait=True):
        with atomic_path(folder / "model.safetensors") as temporary:
            mode = temporary.stat().st_mode
            save_file(unshared(tensors), temporary, metadata={"format": "pt"})
            temporary.chmod(mode)  # save_file puts a private file in its place
        with atomic_path(folder / "config.json") as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder


def _describe(spec: HeadsSpec, base_model: str | None) -> dict[str, Any]:
    return {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "format": CANONICAL,
        "base_model_name_or_path": base_model,
        "num_heads": spec.num_heads,
        "num_hidden_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "truncated_vocab_size": spec.projected_vocab_size,
        "medusa_fc_bias": spec.block_bias,
        "original_lm_head": spec.projection == "single",
        "block": spec.block,
        "intermediate_size": spec.intermediate_size,
        "projection": spec.projection,
        "projection_rank": spec.rank,
    }


DESCRIBING_KEYS = frozenset(_describe(HeadsSpec(num_heads=1, hidden_size=1), None))
"""Keys of config.json that `save_heads` writes itself."""


def unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors, each with a storage of its own."""
    result: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu")
        if name == "token_map":
            tensor = tensor.to(torch.int64)
        size = math.prod(tensor.shape) * tensor.element_size()
        alone = tensor.untyped_storage().nbytes() == size and not any(
            tensor.data_ptr() == other.data_ptr() for other in result.values()
        )
        result[name] = tensor.contiguous() if alone else tensor.clone().contiguous()
    return result
