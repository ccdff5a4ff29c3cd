# SPDX-License-Identifier: Apache-2.0
"""One matrix product with a fixed weight, by the fastest kernel for a few rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Product = Callable[[torch.Tensor], torch.Tensor]
"""[..., in] -> [..., out]."""

_CACHED_SHAPES = 32
"""Numbers of rows for which oneDNN keeps its compiled kernel, as vLLM has it."""


def prepare_linear(
    # [out, in]
    weight: torch.Tensor,
    # [out] or None
    bias: torch.Tensor | None,
) -> Product:
    """Return `x -> F.linear(x, weight, bias)`.

    On a CPU the weight is packed once for oneDNN, as vLLM does for the layers of
    the model (`dispatch_cpu_unquantized_gemm` of
    `vllm.model_executor.layers.utils`): with 3 to 8 rows that takes less than half
    the time of `F.linear`. The packed copy takes as much memory as the weight.
    """
    if weight.device.type == "cpu":
        from vllm import _custom_ops as ops

        if ops._supports_onednn:
            handler = ops.create_onednn_mm(weight.t(), _CACHED_SHAPES)
            return lambda x: ops.onednn_mm(handler, x, bias)
    return lambda x: F.linear(x, weight, bias)
