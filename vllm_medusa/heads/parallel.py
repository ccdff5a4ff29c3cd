# SPDX-License-Identifier: Apache-2.0
"""This process's place among the tensor-parallel ones, and how to shard for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    model_parallel_is_initialized,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)


@dataclass(frozen=True)
class TensorParallel:
    """Rank and size of vLLM's tensor-parallel group; alone if there is none."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> TensorParallel:
        """The group this process belongs to."""
        if not model_parallel_is_initialized():
            return cls()
        return cls(
            get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        )

    def shard(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's equal part along `dim`, zero-padded where it runs over."""
        if self.size == 1:
            return tensor
        length = tensor.shape[dim]
        part = -(-length // self.size)
        start = min(self.rank * part, length)
        rows = tensor.narrow(dim, start, min(part, length - start))
        if rows.shape[dim] == part:
            return rows
        shape = list(tensor.shape)
        shape[dim] = part - rows.shape[dim]
        return torch.cat([rows, tensor.new_zeros(shape)], dim=dim)

    def bounds(self, length: int) -> tuple[int, int]:
        """This rank's part of `length` rows, without padding."""
        part = -(-length // self.size)
        return min(self.rank * part, length), min((self.rank + 1) * part, length)

    def gather(self, tensor: torch.Tensor, length: int) -> torch.Tensor:
        """Undo `shard` on the last dimension: all parts, cut to `length`."""
        if self.size == 1:
            return tensor
        return tensor_model_parallel_all_gather(tensor.contiguous(), -1)[..., :length]

    def stack(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks, [size, *tensor.shape]."""
        return tensor_model_parallel_all_gather(tensor.contiguous()[None], 0)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks."""
        if self.size == 1:
            return tensor
        return tensor_model_parallel_all_reduce(tensor.contiguous())
