# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with the names and dtypes that NVIDIA's Model Optimizer writes.

Sources: `vllm_medusa.checkpoint.modelopt`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.checkpoint.support import (
    HEADS,
    HIDDEN,
    LAYERS,
    VOCAB,
    Tensors,
    assert_same,
    backbone,
    canonical_tensors,
    reference_names,
    refused,
    write,
    write_sharded,
)
from vllm_medusa.checkpoint import load_heads

PREFIX = "medusa_heads."
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "torch_dtype": "bfloat16",
    "medusa": {"num_medusa_heads": HEADS, "num_medusa_layers": 1},
}


def one_layer() -> Tensors:
    """bfloat16 heads of one layer, as ModelOpt makes by default."""
    return {k: v.bfloat16() for k, v in canonical_tensors(layers=1).items()}


def save(folder: Path, named: Tensors, **changes: object) -> Path:
    return write(folder, "model.safetensors", backbone() | named, CONFIG | changes)


# tensors: canonical; per_row: scales [N] instead of one number
def quantised(tensors: Tensors, per_row: bool = False) -> tuple[Tensors, Tensors]:
    """Names and values after export_hf_checkpoint; what they stand for."""
    named: Tensors = {}
    meant: Tensors = {}
    stored = reference_names({k: k for k in tensors}, PREFIX, layers=1)
    for name, canonical in stored.items():
        tensor = tensors[canonical]
        if name.endswith("bias"):
            named[name] = meant[canonical] = tensor
            continue
        module = name.removesuffix(".weight")
        rows = tensor.float().abs().amax(1) if per_row else tensor.float().abs().max()
        scale = rows / 448
        codes = (tensor.float() / scale.reshape(-1, 1)).to(torch.float8_e4m3fn)
        named[name] = codes
        named[f"{module}.weight_scale"] = scale
        named[f"{module}.input_scale"] = torch.tensor(0.01)
        meant[canonical] = (codes.float() * scale.reshape(-1, 1)).bfloat16()
    return named, meant


def test_saved_after_training(tmp_path: Path) -> None:
    tensors = one_layer()
    save(tmp_path, reference_names(tensors, PREFIX, layers=1))
    checkpoint = load_heads(tmp_path)
    assert (checkpoint.format, checkpoint.notes) == ("G", ())
    assert_same(checkpoint.tensors, tensors)


def test_the_config_is_compared(tmp_path: Path) -> None:
    medusa = {"num_medusa_heads": 4, "num_medusa_layers": 2}
    named = reference_names(one_layer(), PREFIX, layers=1)
    notes = load_heads(save(tmp_path, named, medusa=medusa)).notes
    assert notes == (
        "config says heads = 4 (num_medusa_heads), the tensors hold 3",
        "config says layers per head = 2 (num_medusa_layers), the tensors hold 1",
    )


@pytest.mark.parametrize("kept", ["0", "1"])
def test_layers_of_one_block_are_stored_once(tmp_path: Path, kept: str) -> None:
    tensors = canonical_tensors()
    for name in list(tensors):
        if ".layers.1." in name:
            tensors[name] = tensors[name.replace(".layers.1.", ".layers.0.")]
    named = reference_names(tensors, PREFIX)
    for head in range(HEADS):
        for part in ("weight", "bias"):
            del named[f"{PREFIX}{head}.{1 - int(kept)}.linear.{part}"]
    medusa = {"num_medusa_heads": HEADS, "num_medusa_layers": LAYERS}
    assert_same(load_heads(save(tmp_path, named, medusa=medusa)).tensors, tensors)
    # Where the config knows nothing of a second layer, one is missing.
    refused(save(tmp_path, named), "lacks layers")


@pytest.mark.parametrize("per_row", [False, True])
def test_fp8_weights_get_their_scales(tmp_path: Path, per_row: bool) -> None:
    named, meant = quantised(one_layer(), per_row)
    checkpoint = load_heads(save(tmp_path, named))
    assert_same(checkpoint.tensors, meant)
    assert {t.dtype for t in checkpoint.tensors.values()} == {torch.bfloat16}
    for name, tensor in one_layer().items():
        # Half a step of FP8's three bits, and bfloat16's rounding.
        assert torch.allclose(checkpoint.tensors[name], tensor, rtol=0.07), name


def test_fp8_in_shards_and_of_fewer_heads(tmp_path: Path) -> None:
    named, meant = quantised(one_layer())
    half = len(named) // 2
    parts = dict(list(named.items())[:half]), dict(list(named.items())[half:])
    shards = {f"model-{i}.safetensors": part for i, part in enumerate(parts)}
    write_sharded(tmp_path, shards | {"model-9.safetensors": backbone()}, CONFIG)
    kept = {k: v for k, v in meant.items() if k.split(".")[1] == "0"}
    assert_same(load_heads(tmp_path, num_heads=1).tensors, kept)


def test_statistics_of_a_calibration_are_left_aside(tmp_path: Path) -> None:
    tensors = one_layer()
    named = reference_names(tensors, PREFIX, layers=1)
    for module in ("0.0.linear", "2.1"):
        for quantizer in ("weight_quantizer", "input_quantizer"):
            named[f"{PREFIX}{module}.{quantizer}._amax"] = torch.tensor(3.0)
    assert_same(load_heads(save(tmp_path, named)).tensors, tensors)


@pytest.mark.parametrize("is_fp8", [False, True])
def test_names_of_megatron(tmp_path: Path, is_fp8: bool) -> None:
    tensors = one_layer()
    named, meant = quantised(tensors)
    if not is_fp8:
        named, meant = reference_names(tensors, PREFIX, layers=1), tensors
    renamed = {}
    for name, tensor in named.items():
        head, layer, rest = name.removeprefix(PREFIX).split(".", 2)
        module = f"medusa_layers.{layer}" if "linear" in rest else "lm_head"
        rest = rest.replace("weight_scale", "weights_scaling_factor")
        rest = rest.replace("input_scale", "activation_scaling_factor")
        renamed[f"{PREFIX}{head}.{module}.{rest}"] = tensor
    assert f"{PREFIX}1.lm_head.weight" in renamed
    path = write(tmp_path, "rank0.safetensors", backbone() | renamed, CONFIG)
    checkpoint = load_heads(path)
    assert checkpoint.format == "G"
    assert_same(checkpoint.tensors, meant)


BLOCK = f"{PREFIX}0.0.linear"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{BLOCK}.weight_scale": None}, "'blocks.0.layers.0.weight' has dtype"),
        (
            {f"{BLOCK}.weight_scale": torch.ones(2, 2)},
            r"scale of tensor 'blocks.0.layers.0.weight' has shape \[2, 2\]",
        ),
        ({f"{BLOCK}.weight_scale": torch.tensor(0.0)}, "not a positive number"),
        ({f"{BLOCK}.weight_scale": torch.tensor(torch.nan)}, "not a positive number"),
        (
            {f"{BLOCK}.weight": torch.ones(HIDDEN, HIDDEN)},
            "has a scale but dtype torch.float32",
        ),
        (
            {f"{BLOCK}.weight": torch.ones(HIDDEN, HIDDEN).to(torch.int8)},
            "has a scale but dtype None",
        ),
        ({f"{BLOCK}.weight_scale_2": torch.ones(1)}, "scheme .*weight_scale_2"),
        ({f"{PREFIX}0.1.pre_quant_scale": torch.ones(1)}, "scheme .*pre_quant_scale"),
        ({f"{BLOCK}.weight_quantizer._scale": torch.ones(1)}, "quantised by a scheme"),
        ({f"{BLOCK}.weight": None}, "missing"),
    ],
)
def test_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    named, _ = quantised(one_layer())
    for name, tensor in changes.items():
        if tensor is None:
            del named[name]
        else:
            named[name] = tensor
    refused(save(tmp_path, named), message)
