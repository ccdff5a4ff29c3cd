# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU attention backend, taught to see trees."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from vllm_medusa import timing
from vllm_medusa.attention.cpu_cache import check_layout, split_cache
from vllm_medusa.attention.cpu_kernel import CpuTreePlan, attend
from vllm_medusa.attention.cpu_tree_rows import CpuTreeRows
from vllm_medusa.attention.tree_batch import TreeBatch
from vllm_medusa.attention.tree_impl import TreeAttentionImpl
from vllm_medusa.attention.tree_metadata import TreeMetadataBuilder
from vllm_medusa.attention.tree_rows import TreeRows
from vllm_medusa.attention.tree_support import check_scores
from vllm_medusa.errors import UnsupportedError


@dataclass
class TreeCPUAttentionMetadata(CPUAttentionMetadata):
    """vLLM's metadata of one KV cache group, and the step's trees if it has any.

    Model Runner V1 sets a `TreeBatch`, the builder of V2 a `TreeRows`.
    """

    trees: TreeBatch | TreeRows | None = None
    plan: CpuTreePlan | None = None


class TreeCPUAttentionMetadataBuilder(TreeMetadataBuilder, CPUAttentionMetadataBuilder):
    """Builds metadata with a place for the trees."""

    def extend(
        self, metadata: Any, common_attn_metadata: CommonAttentionMetadata
    ) -> TreeCPUAttentionMetadata:
        """Add a place for what the layers of a step share."""
        values = {f.name: getattr(metadata, f.name) for f in fields(metadata)}
        return TreeCPUAttentionMetadata(**values)


class TreeCPUAttentionImpl(TreeAttentionImpl, CPUAttentionBackendImpl):
    """Attends tree rows apart; every other row goes through vLLM's kernel.

    With `tree_attention` unset they are attended in PyTorch, which is what serves a
    CPU; the Triton kernels run here in Triton's interpreter, for tests.
    """

    def attend_trees(
        self,
        # [num_tokens, num_heads, head_size]
        query: torch.Tensor,
        # [num_blocks, num_kv_heads, block_size, 2 * head_size]
        kv_cache: torch.Tensor,
        metadata: TreeCPUAttentionMetadata,
        trees: TreeBatch | TreeRows,
        # [num_tokens, num_heads, head_size] or flattened, tree rows are written
        output: torch.Tensor,
    ) -> None:
        """As `TreeAttentionImpl.attend_trees`."""
        with timing.measure("attention"):
            if self.tree_attention is not None and isinstance(trees, TreeRows):
                super().attend_trees(query, kv_cache, metadata, trees, output)
                return
            if metadata.plan is None:
                metadata.plan = CpuTreePlan(
                    CpuTreeRows(trees) if isinstance(trees, TreeRows) else trees,
                    metadata.block_table,
                    self.num_kv_heads,
                    self.head_size,
                    kv_cache.shape[2],
                    kv_cache.dtype,
                )
            attend(
                metadata.plan,
                query,
                kv_cache,
                output,
                self.scale,
                self.sliding_window,
                self.logits_soft_cap,
            )

    # ([num_blocks, block_size, num_kv_heads, head_size], the same)
    def cache_views(
        self,
        # [num_blocks, num_kv_heads, block_size, 2 * head_size]
        kv_cache: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `TreeAttentionImpl.cache_views`, of vLLM's layout on the CPU."""
        keys, values = split_cache(kv_cache)
        return keys.permute(0, 3, 1, 2), values.transpose(1, 2)

    @property
    def window(self) -> int | None:
        """As `TreeAttentionImpl.window`."""
        return self.sliding_window if self.sliding_window >= 0 else None

    def check_support(self, layer: Any, block_size: int | None = None) -> None:
        """As `TreeAttentionImpl.check_support`; `layer` has its `isa` from the builder.

        Raises:
            UnsupportedError: for ALiBi, attention sinks, a quantised KV cache or an
                unknown cache layout.
        """
        name = getattr(layer, "layer_name", "attention")
        check_scores(self, name)
        if self.is_fp8_kv_cache:
            raise UnsupportedError(
                f"{name}: tree attention does not read a KV cache of type "
                f"{self.kv_cache_dtype!r}: use --kv-cache-dtype auto"
            )
        dtype = layer.kv_cache.dtype
        if block_size is None:
            block_size = layer.kv_cache.shape[2]
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
