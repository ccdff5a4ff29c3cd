# SPDX-License-Identifier: Apache-2.0
"""Triton is used on a GPU and in its interpreter, PyTorch elsewhere."""

import torch

from tests.runner import RUNNER
from vllm_medusa.kernels.backend import use_triton


def test_cpu_tensors_need_the_interpreter():
    assert use_triton(torch.zeros(1)) == (RUNNER == "v2")
