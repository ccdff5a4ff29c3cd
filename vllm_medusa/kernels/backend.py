# SPDX-License-Identifier: Apache-2.0
"""Whether Triton kernels can run on a tensor."""

from __future__ import annotations

import os

import torch
from vllm.triton_utils import HAS_TRITON

# Triton reads it where a kernel is defined, so later changes have no effect.
_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def use_triton(tensor: torch.Tensor) -> bool:
    """Whether kernels on `tensor` are Triton's: on a GPU, or in its interpreter."""
    return HAS_TRITON and (tensor.is_cuda or _IS_INTERPRETED)
