# SPDX-License-Identifier: Apache-2.0
"""Weights over many processes: copied (DDP) or sharded (FSDP2, `fully_shard`).

What is sharded is told by its methods: a process alone does without the second that
importing their classes takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vllm_medusa.train.processes import Processes


def share(module: nn.Module, processes: Processes, *, fsdp: bool) -> nn.Module:
    """The module to call instead of `module`, whose gradients all processes average.

    With `fsdp` it is `module` itself, its weights sharded in place.
    """
    if processes.count == 1:
        return module
    if fsdp:
        return _shard(module, processes)
    return DistributedDataParallel(module, forward_sync_buffers=False)


def shard_base(decoder: nn.Module, processes: Processes) -> None:
    """Shard a frozen model's weights in place, layer by layer."""
    for part in decoder.children():
        if isinstance(part, nn.ModuleList):
            for layer in part:
                _shard(layer, processes)
    _shard(decoder, processes)


def _shard(module: nn.Module, processes: Processes) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    count = processes.count

    def place(parameter: nn.Parameter) -> Shard:
        # Stacked heads are fewer than processes may be.
        even = parameter.dim() > 1 and parameter.shape[1] % count == 0
        return Shard(1 if even else 0)

    mesh = init_device_mesh(processes.device.type, (count,))
    fully_shard(module, mesh=mesh, shard_placement_fn=place)
    return module


def delay_sync(shared: Any, is_last: bool) -> Any:
    """A context for the backward pass of one part of a batch.

    Gradients are averaged over the processes in that of the last part.
    """
    if hasattr(shared, "set_requires_gradient_sync"):
        shared.set_requires_gradient_sync(is_last)
    elif isinstance(shared, DistributedDataParallel) and not is_last:
        return shared.no_sync()
    return nullcontext()


@contextmanager
def whole(shared: Any) -> Iterator[None]:
    """Inside, the module's weights are plain tensors, on all processes at once."""
    if not hasattr(shared, "unshard"):
        yield
        return
    shared.unshard()
    try:
        yield
    finally:
        shared.reshard()


def whole_tensors(value: Any) -> Any:
    """A state with its sharded tensors whole, on the CPU; for all processes at once."""
    if isinstance(value, dict):
        return {key: whole_tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_tensors(item) for item in value]
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return value.cpu() if isinstance(value, torch.Tensor) else value


def sharded_as(tensor: torch.Tensor, like: Any) -> torch.Tensor:
    """A whole tensor where and as `like` is."""
    if hasattr(like, "placements"):
        from torch.distributed.tensor import distribute_tensor

        where = tensor.to(like.device)
        sharded: torch.Tensor = distribute_tensor(
            where, like.device_mesh, like.placements
        )
        return sharded
    return tensor.to(like.device)
