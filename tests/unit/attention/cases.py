# SPDX-License-Identifier: Apache-2.0
"""Random batches with their dense answer, for every implementation of tree attention.

Whatever no row may read (blocks of nobody, slots behind a request's last row, the rest
of the block table) is NaN or leads to NaN, so that a stray read shows in the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tests.unit.attention.specs import FP8, Spec
from vllm_medusa.attention.cpu_cache import split_cache
from vllm_medusa.attention.interface import TreeAttention
from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.reference import tree_attention
from vllm_medusa.attention.tree_rows import TreeRows

# What output holds before: rows of padding must still hold it afterwards.
_UNTOUCHED = 7.0
# The first block belongs to nobody, as in vLLM.
_NULL_BLOCK = 0
_TOLERANCE = {
    torch.float32: 2e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}


@dataclass(frozen=True, slots=True)
class Case:
    """Arguments of `TreeAttention.attend` and what it must write."""

    query: torch.Tensor
    """[num_tokens, num_heads, head_size], a strided view as a split of QKV gives."""
    kv: PagedKV
    trees: TreeRows
    scaling: AttentionScaling
    expected: torch.Tensor
    """[num_tokens, num_heads, head_size] float32, on the CPU."""

    def attend(self, attention: TreeAttention) -> torch.Tensor:
        """Return what `attention` wrote, [num_tokens, num_heads, head_size]."""
        output = torch.full(
            self.query.shape,
            _UNTOUCHED,
            dtype=self.query.dtype,
            device=self.query.device,
        )
        attention.attend(self.query, self.kv, self.trees, output, self.scaling)
        return output

    def check(self, attention: TreeAttention) -> None:
        """Assert that `attention` writes `expected` and nothing else."""
        tolerance = _TOLERANCE[self.query.dtype]
        torch.testing.assert_close(
            self.attend(attention).float().cpu(),
            self.expected,
            atol=tolerance,
            rtol=tolerance,
        )


def make_case(spec: Spec, device: torch.device) -> Case:
    """Draw a batch like `spec` on `device`, and attend it densely in float32."""
    generator = torch.Generator().manual_seed(spec.seed)
    ancestors, depths = _trees(spec, generator)
    num_tokens = sum(spec.rows) + spec.padding_tokens
    qkv = torch.randn(
        num_tokens,
        spec.num_heads + 2 * spec.num_kv_heads,
        spec.head_size,
        generator=generator,
    ).to(spec.dtype)
    query = qkv[:, : spec.num_heads]
    cache = _Cache.empty(spec)
    scaling = AttentionScaling(spec.head_size**-0.5, spec.sliding_window, spec.soft_cap)
    expected = torch.full(query.shape, _UNTOUCHED)
    first = 0
    for request, (num_rows, base) in enumerate(zip(spec.rows, spec.bases, strict=True)):
        if num_rows == 0:
            continue
        key, value = cache.fill(request, base + num_rows, generator)
        last = first + num_rows
        expected[first:last] = tree_attention(
            query[first:last],
            key,
            value,
            ancestors[request, :num_rows, :num_rows],
            depths[request, :num_rows],
            scaling.scale,
            scaling.sliding_window,
            scaling.soft_cap,
        )
        first = last
    rows = torch.tensor(spec.rows)
    seq_lens = rows + torch.tensor(spec.bases) * (rows > 0)
    trees = TreeRows(
        num_reqs=len(spec.rows),
        num_tokens=num_tokens,
        width=max(spec.rows),
        max_seq_len=spec.max_seq_len or int(seq_lens.max()) + 13,
        is_whole_step=True,
        query_start_loc=_int32(torch.cat([torch.zeros(1), rows.cumsum(0)]), device),
        seq_lens=_int32(seq_lens, device),
        depths=_per_request(_int32(depths, device), spec),
        ancestors=_per_request(ancestors.to(device), spec),
    )
    query = qkv.to(device)[:, : spec.num_heads]
    return Case(query, cache.paged(device), trees, scaling, expected)


# -> ([num_reqs, max_width, max_width] bool, [num_reqs, max_width] int64)
def _trees(spec: Spec, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    # A buffer is wider than the batch, and a cut tree's other rows are still in it.
    max_width = max(spec.rows) + 3
    drawn = [
        tree_of(_parents(spec, max_width, generator))
        for _ in (spec.rows if spec.trees == "random" else spec.rows[:1])
    ]
    if spec.trees != "random":
        drawn *= len(spec.rows)
    return (
        torch.stack([ancestors for ancestors, _ in drawn]),
        torch.stack([depths for _, depths in drawn]),
    )


def _parents(spec: Spec, width: int, generator: torch.Generator) -> list[int]:
    if spec.trees == "chain":
        return [max(row - 1, 0) for row in range(width)]
    return [0] + [
        int(torch.randint(row, (), generator=generator)) for row in range(1, width)
    ]


def tree_of(parents: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ancestors [num_rows, num_rows] bool and depths [num_rows] int64."""
    num_rows = len(parents)
    ancestors = torch.eye(num_rows, dtype=torch.bool)
    depths = torch.zeros(num_rows, dtype=torch.int64)
    for row in range(1, num_rows):
        ancestors[row] |= ancestors[parents[row]]
        depths[row] = depths[parents[row]] + 1
    return ancestors, depths


def _per_request(tensor: torch.Tensor, spec: Spec) -> torch.Tensor:
    return tensor if spec.trees == "random" else tensor[:1].expand(tensor.shape)


def _int32(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.to(device, torch.int32)


@dataclass(frozen=True, slots=True)
class _Cache:
    spec: Spec
    # [num_blocks, num_kv_heads, block_size, 2 * head_size], heads last but one if nhd
    storage: torch.Tensor
    # [num_reqs, max_blocks] int64
    block_table: torch.Tensor

    @staticmethod
    def empty(spec: Spec) -> _Cache:
        lengths = [
            b + r if r else 0 for b, r in zip(spec.bases, spec.rows, strict=True)
        ]
        counts = [-(-length // spec.block_size) for length in lengths]
        # One block of each request's share is nobody's.
        num_blocks = 1 + sum(counts) + len(counts)
        generator = torch.Generator().manual_seed(spec.seed + 1)
        blocks = 1 + torch.randperm(num_blocks - 1, generator=generator)
        table = torch.full((len(counts), max(counts) + 2), _NULL_BLOCK)
        for request, count in enumerate(counts):
            table[request, :count], blocks = blocks[:count], blocks[count:]
        order = (spec.num_kv_heads, spec.block_size)
        if spec.layout == "nhd":
            order = order[::-1]
        nothing = torch.full((num_blocks, *order, 2 * spec.head_size), torch.nan)
        return _Cache(spec, nothing.to(_cache_dtype(spec)), table)

    # -> [length, num_kv_heads, head_size] float32 each
    def fill(
        self, request: int, length: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `length` random tokens of a request, return what the cache means."""
        spec = self.spec
        slots = torch.arange(length)
        blocks = self.block_table[request, slots // spec.block_size]
        meant = []
        scales = _scales(spec)
        for view, scale in zip(_views(self.storage, spec), scales, strict=True):
            shape = (length, spec.num_kv_heads, spec.head_size)
            drawn = torch.randn(shape, generator=generator) / scale
            stored = drawn.to(view.dtype)
            # Bytes, since no indexing is defined for 8-bit floats.
            raw = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[view.element_size()]
            view.view(raw)[blocks, slots % spec.block_size] = stored.view(raw)
            meant.append(stored.float() * scale)
        return meant[0], meant[1]

    def paged(self, device: torch.device) -> PagedKV:
        keys, values = _views(self.storage.to(device), self.spec)
        table = _int32(self.block_table, device)
        if _cache_dtype(self.spec) != FP8:
            return PagedKV(keys, values, table)
        key_scale, value_scale = (
            torch.tensor(scale, device=device) for scale in _scales(self.spec)
        )
        return PagedKV(keys, values, table, key_scale, value_scale)


def _cache_dtype(spec: Spec) -> torch.dtype:
    return spec.cache_dtype or spec.dtype


def _scales(spec: Spec) -> tuple[float, float]:
    return (0.37, 1.7) if _cache_dtype(spec) == FP8 else (1.0, 1.0)


# -> [num_blocks, block_size, num_kv_heads, head_size] each
def _views(storage: torch.Tensor, spec: Spec) -> tuple[torch.Tensor, torch.Tensor]:
    if spec.layout == "transposed":
        keys, values = split_cache(storage)
        return keys.permute(0, 3, 1, 2), values.transpose(1, 2)
    keys, values = storage.split(spec.head_size, dim=-1)
    if spec.layout == "hnd":
        return keys.transpose(1, 2), values.transpose(1, 2)
    return keys, values
