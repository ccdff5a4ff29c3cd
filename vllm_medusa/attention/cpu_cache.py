# SPDX-License-Identifier: Apache-2.0
"""How vLLM's CPU attention lays keys and values out inside a block.

One layer's cache is [num_blocks, num_kv_heads, block_size, 2 * head_size]. With
the instruction set "vec", the memory of one block and head holds the keys
transposed, [head_size, block_size], then the values, [block_size, head_size]
(`csrc/cpu/cpu_attn_vec.hpp`). `check_layout` proves this on the machine at hand,
so that no other layout is ever misread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from vllm import _custom_ops as ops

from vllm_medusa.errors import UnsupportedError


def split_cache(
    # [num_blocks, num_kv_heads, block_size, 2 * head_size]
    kv_cache: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return views: keys [num_blocks, num_kv_heads, head_size, block_size] and
    values [num_blocks, num_kv_heads, block_size, head_size]."""
    num_blocks, num_kv_heads, block_size, width = kv_cache.shape
    head_size = width // 2
    halves = kv_cache.view(num_blocks, num_kv_heads, 2, block_size * head_size)
    keys = halves[:, :, 0].view(num_blocks, num_kv_heads, head_size, block_size)
    values = halves[:, :, 1].view(num_blocks, num_kv_heads, block_size, head_size)
    return keys, values


def check_layout(
    isa: str, dtype: torch.dtype, num_kv_heads: int, head_size: int, block_size: int
) -> None:
    """Write random rows with vLLM's own kernel and read them back by our views.

    Raises:
        UnsupportedError: if vLLM keeps another layout with these settings.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2 * block_size, num_kv_heads, head_size)
    key, value = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    cache = torch.zeros(2, num_kv_heads, block_size, 2 * head_size, dtype=dtype)
    rows = cache.view(2, num_kv_heads, 2 * block_size, head_size)
    key_cache, value_cache = rows.chunk(2, dim=2)
    slots = torch.arange(2 * block_size)
    ops.cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, slots, isa)
    keys, values = split_cache(cache)
    read = (
        keys.permute(0, 3, 1, 2).reshape(shape),
        values.transpose(1, 2).reshape(shape),
    )
    if not (torch.equal(read[0], key) and torch.equal(read[1], value)):
        raise UnsupportedError(
            f"tree attention does not know the KV cache layout of vLLM's CPU kernels "
            f"for instruction set {isa!r}, dtype {dtype}, head size {head_size}, block "
            f"size {block_size}: use --dtype float32"
        )


@dataclass(frozen=True, slots=True)
class CpuRowStore:
    """The layers of one KV cache group (see `vllm_medusa.kv.RowStore`)."""

    # [num_layers, num_blocks, num_kv_heads, head_size, block_size] per stack
    keys: list[torch.Tensor]
    # [num_layers, num_blocks, num_kv_heads, block_size, head_size] per stack
    values: list[torch.Tensor]
    block_size: int

    @staticmethod
    def of(kv_caches: Sequence[torch.Tensor]) -> CpuRowStore:
        """Stack the layers that lie evenly spaced in one allocation, so that a row
        of all of them moves in one operation."""
        keys, values = [], []
        for stack in _stacks(list(kv_caches)):
            pairs = [split_cache(layer) for layer in stack.unbind(0)]
            first_key, first_value = pairs[0]
            stride = stack.stride(0)
            keys.append(_restack(first_key, len(pairs), stride))
            values.append(_restack(first_value, len(pairs), stride))
        return CpuRowStore(keys, values, kv_caches[0].shape[2])

    def move(
        self,
        # [num_moves] int64 each
        source_block: torch.Tensor,
        source_offset: torch.Tensor,
        target_block: torch.Tensor,
        target_offset: torch.Tensor,
    ) -> None:
        """Copy rows between slots, in every layer, as if all at once."""
        for keys, values in zip(self.keys, self.values, strict=True):
            # The right-hand sides are copies, so sources may also be targets.
            keys[:, target_block, :, :, target_offset] = keys[
                :, source_block, :, :, source_offset
            ]
            values[:, target_block, :, target_offset] = values[
                :, source_block, :, source_offset
            ]


def _restack(layer: torch.Tensor, num_layers: int, stride: int) -> torch.Tensor:
    """View `num_layers` tensors like `layer`, each `stride` elements further."""
    return torch.as_strided(
        layer,
        (num_layers, *layer.shape),
        (stride, *layer.stride()),
        layer.storage_offset(),
    )


def _stacks(layers: list[torch.Tensor]) -> list[torch.Tensor]:
    """Group layers into views [num_layers, *layer.shape] of one allocation each."""
    stacks: list[torch.Tensor] = []
    while layers:
        first, count = layers[0], 1
        stride: int = first.numel()
        if len(layers) > 1 and _is_alike(first, layers[1]):
            stride = int(layers[1].storage_offset() - first.storage_offset())
            while count < len(layers) and (
                _is_alike(first, layers[count])
                and layers[count].storage_offset()
                == first.storage_offset() + count * stride
            ):
                count += 1
        stacks.append(_restack(first, count, stride))
        layers = layers[count:]
    return stacks


def _is_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.storage_offset() < other.storage_offset()
    )
