# SPDX-License-Identifier: Apache-2.0
"""FP8 weights with scales, as ModelOpt exports them, back in a type to compute in.

The heads' products run in the base model's own type: what FP8 saves here is disk, not
memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from vllm_medusa.checkpoint.tensor_info import TensorInfo
from vllm_medusa.errors import CheckpointError

FP8 = torch.float8_e4m3fn

_SCALES = (torch.float32, torch.float16, torch.bfloat16)
_TYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


def full_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The type that FP8 weights are read in: what the config says of the model's other
    weights, bfloat16 where it says nothing."""
    for key in ("dtype", "torch_dtype"):
        stated = config.get(key)
        if isinstance(stated, str) and stated in _TYPES:
            return _TYPES[stated]
    return torch.bfloat16


def check_scale(
    name: str, weight: TensorInfo, scale: TensorInfo, *, where: str
) -> None:
    """Check a weight and its scale by their headers.

    Raises:
        CheckpointError: the weight is not FP8, or the scale is neither one number nor
            one for each row.
    """
    if weight.dtype != FP8:
        raise CheckpointError(
            f"{where}: tensor {name!r} has a scale but dtype {weight.dtype}: of "
            "quantised heads only FP8 (float8_e4m3fn) can be read; export them "
            "unquantised"
        )
    rows = weight.shape[0] if weight.shape else 1
    is_one = math.prod(scale.shape) == 1
    if scale.dtype not in _SCALES or not (
        is_one or scale.shape in ((rows,), (rows, 1))
    ):
        raise CheckpointError(
            f"{where}: the scale of tensor {name!r} has shape {list(scale.shape)} and "
            f"dtype {scale.dtype}: one floating point number, or one for each of its "
            f"{rows} rows, is expected; export the heads unquantised"
        )


# weight: [N, M] float8_e4m3fn; scale: one number, [N] or [N, 1]
def dequantise(
    name: str,
    weight: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype,
    *,
    where: str,
) -> torch.Tensor:
    """Weight · scale in `dtype`, [N, M]; what `check_scale` has let pass.

    The product is made in float32. The inverse of `to_quantized_weight` in
    `modelopt/torch/export/quant_utils.py`.

    Raises:
        CheckpointError: a scale is not a positive number.
    """
    factors = scale.float().reshape(-1, 1)
    if not bool((torch.isfinite(factors) & (factors > 0)).all()):
        raise CheckpointError(
            f"{where}: a scale of tensor {name!r} is not a positive number; fetch the "
            "heads again"
        )
    return (weight.float() * factors).to(dtype)
