# SPDX-License-Identifier: Apache-2.0
"""One matrix product with a fixed weight, by the fastest kernel for a few rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Product = Callable[[torch.Tensor], torch.Tensor]
"""[..., in] -> [..., out]."""

_CACHED_SHAPES = 32
"""Numbers of rows for which oneDNN keeps its compiled kernel, as vLLM has it."""


class FixedLinear:
    """`x -> F.linear(x, weight, bias)` for a weight that seldom changes.

    On a CPU the weight is packed for oneDNN, as vLLM does for the layers of the model
    (`dispatch_cpu_unquantized_gemm` of `vllm.model_executor.layers.utils`): with 3 to
    8 rows that takes less than half the time of `F.linear`. The packed copy takes as
    much memory as the weight.
    """

    def __init__(
        self,
        # [out, in]
        weight: torch.Tensor,
        # [out] or None
        bias: torch.Tensor | None,
    ) -> None:
        self._bias = bias
        self._weight: torch.Tensor | None = weight
        self._packed: Any = None
        self._pack(weight)

    def _pack(self, weight: torch.Tensor) -> None:
        if weight.device.type != "cpu":
            return
        from vllm import _custom_ops as ops

        if ops._supports_onednn:
            self._packed = ops.create_onednn_mm(weight.t(), _CACHED_SHAPES)
            # The packed copy is all that is needed.
            self._weight = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply: [..., in] -> [..., out]."""
        if self._packed is not None:
            from vllm import _custom_ops as ops

            return ops.onednn_mm(self._packed, x, self._bias)
        assert self._weight is not None
        return F.linear(x, self._weight, self._bias)

    def update(
        self,
        # as at the start, on any device
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> None:
        """Take other values of the same shapes. They are written in place: captured
        graphs know the addresses."""
        if self._bias is not None and bias is not None:
            self._bias.copy_(bias)
        if self._weight is None:
            self._pack(weight)
        else:
            self._weight.copy_(weight)
