# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU attention backend, taught to see trees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from vllm.v1.attention import selector
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from vllm_medusa import timing
from vllm_medusa.attention.cpu_cache import check_layout
from vllm_medusa.attention.cpu_kernel import CpuTreePlan, attend
from vllm_medusa.attention.tree_batch import TreeBatch
from vllm_medusa.errors import UnsupportedError


@dataclass
class TreeCPUAttentionMetadata(CPUAttentionMetadata):
    """vLLM's metadata of one KV cache group, and the step's trees if it has any."""

    trees: TreeBatch | None = None
    plan: CpuTreePlan | None = None


class TreeCPUAttentionMetadataBuilder(CPUAttentionMetadataBuilder):
    """Builds metadata with a place for the trees, which the runner fills in."""

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> TreeCPUAttentionMetadata:
        """As `CPUAttentionMetadataBuilder.build`."""
        plain = super().build(common_prefix_len, common_attn_metadata, fast_build)
        values = {f.name: getattr(plain, f.name) for f in fields(plain)}
        return TreeCPUAttentionMetadata(**values)


class TreeCPUAttentionImpl(CPUAttentionBackendImpl):
    """Attends tree rows apart; every other row goes through vLLM's kernel."""

    def forward(
        self,
        layer: torch.nn.Module,
        # [num_tokens, num_heads, head_size]
        query: torch.Tensor,
        # [num_tokens, num_kv_heads, head_size]
        key: torch.Tensor,
        # [num_tokens, num_kv_heads, head_size]
        value: torch.Tensor,
        # [num_blocks, num_kv_heads, block_size, 2 * head_size]
        kv_cache: torch.Tensor,
        attn_metadata: TreeCPUAttentionMetadata | None,
        # [num_tokens, num_heads, head_size] or flattened, written
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `CPUAttentionBackendImpl.forward`. The step's keys and values are in the
        cache already (`forward_includes_kv_cache_update` is False)."""
        trees = attn_metadata.trees if attn_metadata is not None else None
        if trees is None or not trees.is_whole_step:
            # Also covers the tree rows of a mixed step, which are overwritten below:
            # vLLM's kernel takes the whole batch or nothing.
            super().forward(
                layer,
                query,
                key,
                value,
                kv_cache,
                attn_metadata,
                output,
                output_scale,
                output_block_scale,
            )
        if attn_metadata is None or trees is None:
            return output
        with timing.measure("attention"):
            if attn_metadata.plan is None:
                attn_metadata.plan = CpuTreePlan(
                    trees,
                    attn_metadata.block_table,
                    self.num_kv_heads,
                    self.head_size,
                    kv_cache.shape[2],
                    kv_cache.dtype,
                )
            attend(
                attn_metadata.plan,
                query,
                kv_cache,
                output,
                self.scale,
                self.sliding_window,
                self.logits_soft_cap,
            )
        return output

    def check_support(self, layer: Any, block_size: int) -> None:
        """Refuse what `attend` would get wrong; `layer` is the vLLM layer of this
        implementation, with `isa` set by the metadata builder.

        Raises:
            UnsupportedError: for ALiBi, attention sinks, a quantised KV cache or an
                unknown cache layout.
        """
        name = getattr(layer, "layer_name", "attention")
        if self.alibi_slopes is not None:
            raise UnsupportedError(
                f"{name}: tree attention does not support ALiBi: serve this model "
                "without Medusa"
            )
        if self.sinks is not None:
            raise UnsupportedError(
                f"{name}: tree attention does not support attention sinks: serve this "
                "model without Medusa"
            )
        if self.is_fp8_kv_cache:
            raise UnsupportedError(
                f"{name}: tree attention does not read a KV cache of type "
                f"{self.kv_cache_dtype!r}: use --kv-cache-dtype auto"
            )
        dtype = layer.kv_cache.dtype
        check_layout(layer.isa, dtype, self.num_kv_heads, self.head_size, block_size)


class TreeCPUAttentionBackend(CPUAttentionBackend):
    """`CPU_ATTN` with the classes of this module."""

    @staticmethod
    def get_impl_cls() -> type[TreeCPUAttentionImpl]:
        """Return the implementation that layers instantiate."""
        return TreeCPUAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[TreeCPUAttentionMetadataBuilder]:
        """Return the metadata builder."""
        return TreeCPUAttentionMetadataBuilder


@contextmanager
def tree_backend() -> Iterator[None]:
    """Make layers that are built inside use `TreeCPUAttentionBackend`.

    Uses vLLM's own registry of backends. The override ends with the block, so that
    another engine of the same process gets vLLM's backend again.
    """
    backend = AttentionBackendEnum.CPU_ATTN
    cls = TreeCPUAttentionBackend
    register_backend(backend, f"{cls.__module__}.{cls.__qualname__}")
    selector._cached_get_attn_backend.cache_clear()
    try:
        yield
    finally:
        backend.clear_override()
        selector._cached_get_attn_backend.cache_clear()
