# SPDX-License-Identifier: Apache-2.0
"""The processes that train together, one per device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from vllm_medusa.errors import ConfigError, MedusaError

Result = TypeVar("Result")

_CPU = torch.device("cpu")
_PATIENCE = timedelta(hours=3)
"""How long a process waits for the others, the first of which may be writing."""


@dataclass(frozen=True)
class Processes:
    """This process and how many there are; alone unless a launcher started more.

    Attributes:
        rank: number of this process.
        count: processes, also called the world size.
        device: of this process.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = _CPU

    @classmethod
    def alone(cls) -> Processes:
        """This process only, on a GPU if there is one."""
        return cls(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def first(self, work: Callable[[], None]) -> None:
        """Let the first process do something while the others wait for it.

        Raises:
            MedusaError: in the first process, if `work` did; the others then exit
                with 2, having nothing to add.
        """
        failure = [False]
        problem: MedusaError | None = None
        if self.is_first:
            try:
                work()
            except MedusaError as error:
                problem, failure = error, [True]
        if self.count > 1:
            dist.broadcast_object_list(failure, src=0)
        if problem is not None:
            raise problem
        if failure[0]:
            raise SystemExit(2)

    # any shape
    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' tensors, on the CPU."""
        if self.count > 1:
            # NCCL knows the device's tensors only.
            tensor = tensor.to(self.device)
            dist.all_reduce(tensor)
        return tensor.cpu()


@contextmanager
def started() -> Iterator[Processes]:
    """Join the processes that `accelerate launch` or `torchrun` started, if any.

    Raises:
        ConfigError: there are others, and accelerate is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes.alone()
        return
    try:
        from accelerate import PartialState
    except ImportError:
        raise ConfigError(
            "several processes need accelerate: pip install 'vllm-medusa[train]'"
        ) from None
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    try:
        yield Processes(state.process_index, state.num_processes, state.device)
    finally:
        state.destroy_process_group()
