# SPDX-License-Identifier: Apache-2.0
"""Tensor names of the published formats and the canonical names they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_medusa.checkpoint import modelopt
from vllm_medusa.errors import CheckpointError
from vllm_medusa.wording import show

# What the letters of `HeadsCheckpoint.format` mean.
FORMATS = {
    "A": "reference v0.1, torch file",
    "B": "reference v1, own projections, safetensors",
    "C": 'reference "version 2", shared LM head',
    "D": "full model with heads beside the backbone",
    "E": "vLLM",
    "F": "Lepton",
    "G": "NVIDIA ModelOpt",
    "canonical": "vllm-medusa",
}

# Value of config.json's "format" key in the canonical form.
CANONICAL = "vllm-medusa"

_PREFIX = re.compile(r"^(?:base_model\.|model\.|module\.)*(medusa_heads?)\.")
_REFERENCE_LAYER = re.compile(r"(\d+)\.(\d+)\.linear\.(weight|bias)", re.ASCII)
_REFERENCE_PROJECTION = re.compile(r"(\d+)\.(\d+)\.weight", re.ASCII)
_CANONICAL = re.compile(
    r"blocks\.\d+\.layers\.\d+\.(?:(?:up|down)\.)?(?:weight|bias)"
    r"|blocks\.\d+\.norms\.\d+\.(?:weight|bias)"
    r"|lm_heads\.\d+\.(?:(?:up|down)\.)?weight"
    r"|lm_head\.weight|token_map",
    re.ASCII,
)
_MAX_DIGITS = 4


@dataclass(frozen=True)
class Naming:
    """How a file names its heads' tensors.

    Attributes:
        format: a key of FORMATS.
        stored: canonical name -> name in the file.
        scales: canonical name of a quantised weight -> name of its scale in the file.
    """

    format: str
    stored: dict[str, str]
    scales: dict[str, str] = field(default_factory=dict)


def is_heads_tensor(name: str) -> bool:
    """Whether a full model's tensor `name` belongs to the heads."""
    return _PREFIX.match(name) is not None


def map_names(
    names: Iterable[str], config: Mapping[str, Any], *, is_torch_file: bool, where: str
) -> Naming:
    """Recognise the format and map canonical names to stored ones.

    Beside a backbone (formats D and G) only prefixed names count; elsewhere every
    name must be known.

    Raises:
        CheckpointError: no heads, unknown tensors, two names for one tensor.
    """
    all_names = list(names)
    prefixed = {m.group(1) for n in all_names if (m := _PREFIX.match(n)) is not None}
    own_names = [n for n in all_names if not prefixed or is_heads_tensor(n)]
    stored: dict[str, str] = {}
    scales: dict[str, str] = {}
    projection_layer: dict[str, int] = {}
    unknown: list[str] = []
    for name in own_names:
        short = _PREFIX.sub("", name)
        if any(len(digits) > _MAX_DIGITS for digits in re.findall(r"\d+", short)):
            unknown.append(name)
            continue
        canonical = short
        if match := _REFERENCE_LAYER.fullmatch(short):
            canonical = f"blocks.{match[1]}.layers.{match[2]}.{match[3]}"
        elif match := _REFERENCE_PROJECTION.fullmatch(short):
            canonical = f"lm_heads.{match[1]}.weight"
            if canonical not in stored:
                projection_layer[match[1]] = int(match[2])
        elif "medusa_heads" in prefixed and modelopt.is_unused(short):
            continue
        elif "medusa_heads" in prefixed and (weight := modelopt.scaled_weight(short)):
            scales[weight] = name
            continue
        elif "medusa_heads" in prefixed and (known := modelopt.canonical_name(short)):
            canonical = known
        elif not _CANONICAL.fullmatch(short):
            unknown.append(name)
            continue
        if canonical in stored:
            raise CheckpointError(
                f"{where}: {show(stored[canonical])} and {show(name)} are the same "
                "tensor"
            )
        stored[canonical] = name
    if "medusa_heads" in prefixed:
        _refuse_other_schemes(unknown, where)
        for name, twin in list(
            modelopt.repeated_layers(stored, projection_layer, config)
        ):
            stored[name] = stored[twin]
            if twin in scales:
                scales[name] = scales[twin]
    if unknown:
        raise CheckpointError(
            f"{where}: {len(unknown)} tensors are not known parts of Medusa heads: "
            f"{_some(unknown)}"
        )
    if not any(name.startswith("blocks.") for name in stored):
        raise CheckpointError(f"{where} holds no Medusa heads")
    _check_projection_layers(stored, projection_layer, where)
    projections = [name for name in stored if name.startswith("lm_heads.")]
    if config.get("original_lm_head") and projections == ["lm_heads.0.weight"]:
        # vLLM may keep the one matrix of all heads under head 0's name.
        stored["lm_head.weight"] = stored.pop("lm_heads.0.weight")
    return Naming(_format(prefixed, stored, config, is_torch_file), stored, scales)


def _refuse_other_schemes(unknown: list[str], where: str) -> None:
    others = [
        name for name in unknown if modelopt.is_of_another_scheme(_PREFIX.sub("", name))
    ]
    if others:
        raise CheckpointError(
            f"{where}: the heads are quantised by a scheme that cannot be read "
            f"({_some(others)}): FP8 with scales per tensor or row can; export the "
            "heads so, or unquantised"
        )


def _check_projection_layers(
    stored: Mapping[str, str], projection_layer: Mapping[str, int], where: str
) -> None:
    """The reference counts a head's projection as the layer after its blocks."""
    for head, position in projection_layer.items():
        pattern = re.compile(rf"blocks\.{head}\.layers\.(\d+)\.weight")
        layers = {int(m[1]) for name in stored if (m := pattern.fullmatch(name))}
        missing = sorted(set(range(position)) - layers)
        if missing:
            raise CheckpointError(f"{where}: head {head} lacks layers {missing}")
        if len(layers) > position:
            raise CheckpointError(
                f"{where}: head {head} has its projection at {head}.{position}, "
                f"where a layer stands"
            )


def _format(
    prefixed: set[str],
    stored: Mapping[str, str],
    config: Mapping[str, Any],
    is_torch_file: bool,
) -> str:
    if config.get("format") == CANONICAL:
        return "canonical"
    if config.get("decoding_strategy") == "tree_decoding":
        return "F"
    if "medusa_heads" in prefixed:
        return "G"
    if "medusa_head" in prefixed:
        return "D"
    if any(name.startswith("blocks.") for name in stored.values()):
        return "E"
    if is_torch_file:
        return "A"
    return "B" if "lm_heads.0.weight" in stored else "C"


def _some(names: list[str], limit: int = 8) -> str:
    """The first few names, for an error message."""
    # As they are, unless a terminal could take them for commands.
    shown = ", ".join(
        name if name.isprintable() and len(name) <= 120 else show(name, 120)
        for name in sorted(names)[:limit]
    )
    return shown if len(names) <= limit else f"{shown}, …"
