# SPDX-License-Identifier: Apache-2.0
"""Names that NVIDIA's Model Optimizer (ModelOpt) gives to tensors of Medusa heads.

All follow the prefix `medusa_heads.`; {h} is a head, {l} one of its L layers.

- A model trained with `modelopt.torch.speculative` and saved by `save_pretrained`
  (`HFMedusaModel` in `modelopt/torch/speculative/plugins/transformers.py`): a list of
  `Sequential(ResBlock…, Linear)`, so `{h}.{l}.linear.weight`, `{h}.{l}.linear.bias` and
  `{h}.{L}.weight`, as in the reference; `config.json` holds `"medusa":
  {"num_medusa_heads", "num_medusa_layers"}`. One ResBlock stands in the list L times,
  and names of weights that are stored already are left out.
- The same after `export_hf_checkpoint` (`modelopt/torch/export/unified_export_hf.py`):
  beside an FP8 weight its `weight_scale` and the `input_scale` of activations, float32.
  nvidia/Llama-3.1-8B-Medusa-FP8 is one; TensorRT-LLM reads these names in
  `load_medusa_hf` (`tensorrt_llm/models/medusa/weight.py`).
- A quantised model saved before its export: weights in full precision, beside them the
  statistics `weight_quantizer._amax` and `input_quantizer._amax`.
- Megatron's heads (`modelopt/torch/speculative/plugins/megatron_medusa.py`), also in
  TensorRT-LLM's checkpoints of one rank: `{h}.medusa_layers.{l}.linear.weight`,
  `{h}.lm_head.weight`, with `weights_scaling_factor` and `activation_scaling_factor`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_LAYER = r"(?P<head>\d+)\.(?:medusa_layers\.)?(?P<layer>\d+)\.linear\."
_PROJECTION = r"(?P<of>\d+)\.(?:\d+|lm_head)\."
_MODULE = rf"(?:{_LAYER}|{_PROJECTION})"
_MEGATRON_LAYER = re.compile(
    r"(\d+)\.medusa_layers\.(\d+)\.linear\.(weight|bias)", re.ASCII
)
_MEGATRON_PROJECTION = re.compile(r"(\d+)\.lm_head\.weight", re.ASCII)
_SCALE = re.compile(rf"{_MODULE}(?:weight_scale|weights_scaling_factor)", re.ASCII)
_UNUSED = re.compile(
    rf"{_MODULE}(?:input_scale|activation_scaling_factor"
    r"|(?:input|weight|output)_quantizer\._amax)",
    re.ASCII,
)
_OTHER_SCHEME = re.compile(
    rf"{_MODULE}(?:weight_scale_2|pre_quant_scale|prequant_scaling_factor"
    r"|weight_quantizer\.\w+|input_quantizer\._pre_quant_scale)",
    re.ASCII,
)


def canonical_name(name: str) -> str | None:
    """The canonical name of a tensor of Megatron's heads, None for others."""
    if match := _MEGATRON_LAYER.fullmatch(name):
        return f"blocks.{match[1]}.layers.{match[2]}.{match[3]}"
    if match := _MEGATRON_PROJECTION.fullmatch(name):
        return f"lm_heads.{match[1]}.weight"
    return None


def scaled_weight(name: str) -> str | None:
    """The canonical name of the weight whose scale `name` is, None for others."""
    match = _SCALE.fullmatch(name)
    if match is None:
        return None
    if match["head"] is None:
        return f"lm_heads.{match['of']}.weight"
    return f"blocks.{match['head']}.layers.{match['layer']}.weight"


def is_unused(name: str) -> bool:
    """Whether `name` is of no use to heads that compute in full precision: scales of
    activations and statistics of a calibration."""
    return _UNUSED.fullmatch(name) is not None


def is_of_another_scheme(name: str) -> bool:
    """Whether `name` belongs to a quantisation other than FP8 with one scale or one per
    row (NVFP4, AWQ, smoothed INT8, compressed weights)."""
    return _OTHER_SCHEME.fullmatch(name) is not None


def repeated_layers(
    stored: Mapping[str, str],
    # head -> number of layers before its projection
    projection_layer: Mapping[str, int],
    config: Mapping[str, Any],
) -> Iterator[tuple[str, str]]:
    """Canonical names that share the one stored layer of their head.

    Only where the config says that there are as many layers as the projection's place
    tells: anywhere else what is missing is missing.

    Yields:
        A canonical name that is not stored, and the canonical name of its twin.
    """
    for head, position in projection_layer.items():
        if position < 2 or stated_layers(config) != position:
            continue
        pattern = re.compile(rf"blocks\.{head}\.layers\.(\d+)\.(\w+)", re.ASCII)
        found = [match for name in stored if (match := pattern.fullmatch(name))]
        if len({match[1] for match in found}) != 1:
            continue
        for match in found:
            for layer in range(position):
                if layer != int(match[1]):
                    yield f"blocks.{head}.layers.{layer}.{match[2]}", match[0]


def stated_layers(config: Mapping[str, Any]) -> object:
    """Layers per head as ModelOpt's part of a config states them, if it does."""
    own = config.get("medusa")
    if isinstance(own, dict) and "num_medusa_layers" in own:
        return own["num_medusa_layers"]
    return config.get("medusa_num_layers")
