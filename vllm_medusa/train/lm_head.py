# SPDX-License-Identifier: Apache-2.0
"""Reading a base model's LM head, without the rest of the model if possible."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vllm_medusa.train.backbone import load_backbone

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# Others, such as float8, stand beside a scale that only their loader knows.
_PLAIN = (torch.float32, torch.bfloat16, torch.float16)


def read_lm_head(model: str) -> torch.Tensor:
    """The base model's LM head, [V, H] bfloat16.

    Of a checkpoint in safetensors only this matrix is read, so that neither the
    model's size nor how its layers are quantised matters; others are loaded whole.

    Args:
        model: folder or Hugging Face id.

    Raises:
        CheckpointError: the model can't be loaded or has no LM head.
    """
    weight = _read_alone(model)
    if weight is None:
        backbone = load_backbone(model, torch.bfloat16, None, "cpu")
        weight = backbone.get_output_embeddings().weight.detach().clone()
    return weight.bfloat16()


def _read_alone(model: str) -> torch.Tensor | None:
    """The LM head from its file; None if it can't be told which tensor it is."""
    try:
        names = _names_of_lm_head(model)
        index = _file(model, _INDEX)
        files = {}
        if index is not None:
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for name in names:
            path = _file(model, files.get(name, _SINGLE))
            if path is None:
                continue
            with safe_open(path, framework="pt") as stream:
                if name in stream.keys():  # noqa: SIM118 (not a mapping)
                    weight: torch.Tensor = stream.get_tensor(name)
                    return weight if weight.dtype in _PLAIN else None
    except (OSError, ValueError, KeyError, SafetensorError):
        pass
    return None


def _names_of_lm_head(model: str) -> list[str]:
    """What its tensor may be called: one name more where embeddings are tied to it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    head = skeleton.get_output_embeddings()
    if head is None:
        return []
    return [
        name
        for name, parameter in skeleton.named_parameters(remove_duplicate=False)
        if parameter is head.weight
    ]


def _file(model: str, name: str) -> Path | None:
    """A file of the model's repository; None if it has none of that name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(model, name))
    except EntryNotFoundError:
        return None
