# SPDX-License-Identifier: Apache-2.0
"""On GPUs vLLM forks the process in which the heads have been looked at."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import multiprocessing

import torch
from vllm.engine.arg_utils import EngineArgs

from vllm_medusa.default_model import heads_path
from vllm_medusa.engine_config import prepare_engine_args


def work() -> None:
    torch.ones(1 << 20).isfinite().all()


torch.set_num_threads(2)
arguments = EngineArgs(model=str(heads_path()))
prepare_engine_args(arguments, {"method": "medusa", "model": "default"})
assert torch.get_num_threads() == 2
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join(20)
if child.is_alive():
    child.kill()
    raise SystemExit("the child waits for threads that only its parent has")
"""


def test_a_fork_can_still_use_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
