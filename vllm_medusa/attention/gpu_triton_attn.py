# SPDX-License-Identifier: Apache-2.0
"""vLLM's backend TRITON_ATTN, taught to see trees."""

from __future__ import annotations

from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from vllm_medusa.attention.tree_impl import TreeAttentionImpl
from vllm_medusa.attention.tree_metadata import TreeMetadataBuilder


class TreeTritonAttentionMetadataBuilder(
    TreeMetadataBuilder, TritonAttentionMetadataBuilder
):
    """Attaches the step's trees to the metadata of vLLM's Triton kernels."""


class TreeTritonAttentionImpl(TreeAttentionImpl, TritonAttentionImpl):
    """Attends tree rows apart; every other row goes through vLLM's Triton kernels."""


class TreeTritonAttentionBackend(TritonAttentionBackend):
    """`TRITON_ATTN` with the classes of this module."""

    @staticmethod
    def get_impl_cls() -> type[TreeTritonAttentionImpl]:
        """Return the implementation that layers instantiate."""
        return TreeTritonAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[TreeTritonAttentionMetadataBuilder]:
        """Return the metadata builder."""
        return TreeTritonAttentionMetadataBuilder
