# SPDX-License-Identifier: Apache-2.0
"""What a worker process on a GPU imports leaves PyTorch as it is."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import sys

import torch

before = torch.cuda.Stream, torch.cuda.current_stream, torch.Tensor.record_stream

from vllm_medusa import plugin
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm_medusa.engine_config import WORKERS

plugin.register()
resolve_obj_by_qualname(WORKERS["cuda"])
import vllm_medusa.attention.gpu_flash_attn
import vllm_medusa.attention.gpu_triton_attn
import vllm_medusa.calibration.probe
import vllm_medusa.runner.v2.model_runner

assert "vllm.v1.worker.cpu.shm" not in sys.modules
now = torch.cuda.Stream, torch.cuda.current_stream, torch.Tensor.record_stream
assert now == before
"""


def test_nothing_of_the_cpu_worker() -> None:
    """vLLM's CPU worker makes streams, events and pinned memory do nothing."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
