# SPDX-License-Identifier: Apache-2.0
"""Tree attention with a tree per request, in kernels of our own."""

from __future__ import annotations

import torch

from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.tree_rows import TreeRows
from vllm_medusa.attention.triton_kernels import attend_rows
from vllm_medusa.attention.triton_merge import merge_parts
from vllm_medusa.attention.triton_tiles import (
    MAX_ROWS,
    PROGRAMS_PER_PROCESSOR,
    Tiles,
    choose_tiles,
    count_parts,
)
from vllm_medusa.errors import UnsupportedError

_CACHE_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


class TritonTreeAttention:
    """`TreeAttention` for any trees; see `vllm_medusa.attention.triton_kernels`.

    A small batch has fewer programs than the device has processors; each context is
    then split into parts, which a second kernel joins. How many is decided by sizes
    known on the host, so that a CUDA graph can be captured; the parts' buffers are
    allocated here, once. One instance serves all layers of a model, one after another.
    """

    name = "triton"

    def __init__(
        self,
        device: torch.device,
        max_head_size: int,
        num_processors: int | None = None,
    ) -> None:
        """Allocate the buffers.

        Args:
            device: where queries and caches lie.
            max_head_size: of all layers.
            num_processors: streaming multiprocessors to fill; None asks the device
                (1, thus no split, on a CPU).
        """
        if num_processors is None:
            num_processors = (
                torch.cuda.get_device_properties(device).multi_processor_count
                if device.type == "cuda"
                else 1
            )
        self._num_processors = num_processors
        self._max_padded = _power_of_two(max_head_size)
        self._can_read_e4m3 = device.type != "cuda" or (
            torch.cuda.get_device_capability(device) >= (8, 9)
        )
        # A split never makes more programs than this, of MAX_ROWS packed rows each.
        num_rows = PROGRAMS_PER_PROCESSOR * num_processors * MAX_ROWS
        self._weights = torch.empty(num_rows, dtype=torch.float32, device=device)
        self._partial = torch.empty(
            num_rows * self._max_padded, dtype=torch.float32, device=device
        )

    @property
    def num_bytes(self) -> int:
        """Device memory of the buffers."""
        return 4 * (self._weights.numel() + self._partial.numel())

    def num_parts(self, query: torch.Tensor, kv: PagedKV, trees: TreeRows) -> int:
        """Return into how many parts `attend` splits each context; 1 if the batch
        fills the device without."""
        return self._grid(query, kv, trees)[2]

    def attend(
        self,
        # [num_tokens, num_heads, head_size], of the tree rows alone
        query: torch.Tensor,
        kv: PagedKV,
        trees: TreeRows,
        # [num_tokens, num_heads, head_size], written
        output: torch.Tensor,
        scaling: AttentionScaling,
    ) -> None:
        """As `TreeAttention.attend`.

        Raises:
            UnsupportedError: for types and head sizes that the kernels don't take.
        """
        keys, values = kv.keys, kv.values
        num_heads, head_size = query.shape[1:]
        num_kv_heads = keys.shape[2]
        self._check(keys.dtype, head_size)
        tiles, num_tiles, num_parts = self._grid(query, kv, trees)
        padded_size = _power_of_two(head_size)
        attend_rows[(trees.num_reqs * num_tiles, num_kv_heads, num_parts)](
            query,
            keys,
            values,
            kv.block_table,
            trees.query_start_loc,
            trees.seq_lens,
            trees.depths,
            trees.ancestors,
            kv.key_scale,
            kv.value_scale,
            output,
            self._partial,
            self._weights,
            scaling.scale / (scaling.soft_cap or 1.0),
            scaling.soft_cap,
            num_tiles,
            trees.width,
            num_heads,
            query.stride(0),
            query.stride(1),
            output.stride(0),
            output.stride(1),
            keys.stride(0),
            keys.stride(1),
            keys.stride(2),
            values.stride(0),
            values.stride(1),
            values.stride(2),
            kv.block_table.stride(0),
            trees.depths.stride(0),
            trees.ancestors.stride(0),
            trees.ancestors.stride(1),
            KEY_STRIDE_ELEMENT=keys.stride(3),
            VALUE_STRIDE_ELEMENT=values.stride(3),
            BLOCK_SIZE=kv.block_size,
            HEAD_SIZE=head_size,
            PADDED_SIZE=padded_size,
            GROUP=num_heads // num_kv_heads,
            SLIDING_WINDOW=scaling.sliding_window or 0,
            HAS_SOFT_CAP=scaling.soft_cap > 0.0,
            HAS_SCALES=kv.key_scale is not None,
            ONE_PART=num_parts == 1,
            # tf32 would keep 10 bits of a float32 fraction.
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
            ROWS=tiles.rows,
            KEYS=tiles.keys,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
        if num_parts > 1:
            merge_parts[(trees.num_reqs * trees.width, num_heads)](
                self._partial,
                self._weights,
                trees.query_start_loc,
                output,
                trees.width,
                num_heads,
                output.stride(0),
                output.stride(1),
                HEAD_SIZE=head_size,
                PADDED_SIZE=padded_size,
                PARTS=num_parts,
            )

    # -> (tiles, tiles of rows per request, parts of a context)
    def _grid(
        self, query: torch.Tensor, kv: PagedKV, trees: TreeRows
    ) -> tuple[Tiles, int, int]:
        num_kv_heads = kv.keys.shape[2]
        packed_rows = trees.width * (query.shape[1] // num_kv_heads)
        tiles = choose_tiles(packed_rows, query.shape[2], query.dtype)
        num_tiles = -(-packed_rows // tiles.rows)
        num_parts = count_parts(
            trees.num_reqs * num_tiles * num_kv_heads,
            self._num_processors,
            trees.max_seq_len,
            tiles.keys,
        )
        return tiles, num_tiles, num_parts

    def _check(self, cache_dtype: torch.dtype, head_size: int) -> None:
        if cache_dtype not in _CACHE_DTYPES:
            raise UnsupportedError(
                f"Triton tree attention does not read a KV cache of {cache_dtype}: use "
                "--kv-cache-dtype auto or fp8"
            )
        if cache_dtype == torch.float8_e4m3fn and not self._can_read_e4m3:
            raise UnsupportedError(
                "Triton reads a KV cache of fp8 (e4m3) on GPUs of compute capability "
                "8.9 and newer only: use --kv-cache-dtype auto"
            )
        if head_size > self._max_padded:
            raise UnsupportedError(
                f"the buffers of Triton tree attention are for head sizes up to "
                f"{self._max_padded}, not {head_size}"
            )


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
