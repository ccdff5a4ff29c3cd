# SPDX-License-Identifier: Apache-2.0
"""Ranks of tensor parallelism over gloo, a process each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from tests import interpreter
from tests.runner import RUNNER

RANKS = 2


def run_ranks(body: Callable[[int, int, str], None], folder: Path) -> list[Any]:
    """Run `body(rank, size, folder)` in a process for each rank; return what each has
    saved in `folder` as RANK.pt."""
    mp.spawn(body, args=(RANKS, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@contextmanager
def as_rank(rank: int, size: int, folder: str) -> Iterator[None]:
    """Be one of `size` ranks for the block, in a process of its own."""
    torch.set_num_threads(1)
    if RUNNER == "v2":
        # A new process does not inherit it, and the merge is a kernel.
        interpreter.install()
    # Names the shared memory that vLLM's CPU ranks talk through.
    os.environ["VLLM_DIST_IDENT"] = folder.replace("/", "_")
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )

    with set_current_vllm_config(VllmConfig()), torch.inference_mode():
        init_distributed_environment(size, rank, f"file://{folder}/init", rank, "gloo")
        initialize_model_parallel(size, 1)
        yield
    cleanup_dist_env_and_memory()
