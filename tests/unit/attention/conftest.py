# SPDX-License-Identifier: Apache-2.0
"""Where kernels run."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.interpreter),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def triton_device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, where kernels are interpreted, and a GPU, where there is one."""
    return torch.device(request.param)
