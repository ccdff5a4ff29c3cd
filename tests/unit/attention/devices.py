# SPDX-License-Identifier: Apache-2.0
"""What Triton can't do on some devices."""

from __future__ import annotations

import pytest
import torch

from tests.unit.attention.specs import FP8, Spec


def skip_unless_triton_takes(spec: Spec, device: torch.device) -> None:
    """Skip a case whose types Triton does not take on `device`."""
    if device.type == "cpu" and spec.dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bit patterns of bfloat16")
    if (
        device.type == "cuda"
        and spec.cache_dtype == FP8
        and torch.cuda.get_device_capability(device) < (8, 9)
    ):
        pytest.skip("Triton reads e4m3 from compute capability 8.9 on")
