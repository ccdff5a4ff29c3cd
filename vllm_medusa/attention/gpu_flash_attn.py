# SPDX-License-Identifier: Apache-2.0
"""vLLM's backend FLASH_ATTN, taught to see trees."""

from __future__ import annotations

from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from vllm_medusa.attention.tree_impl import TreeAttentionImpl
from vllm_medusa.attention.tree_metadata import TreeMetadataBuilder


class TreeFlashAttentionMetadataBuilder(
    TreeMetadataBuilder, FlashAttentionMetadataBuilder
):
    """Attaches the step's trees to FlashAttention's metadata."""


class TreeFlashAttentionImpl(TreeAttentionImpl, FlashAttentionImpl):
    """Attends tree rows apart; every other row goes through FlashAttention."""


class TreeFlashAttentionBackend(FlashAttentionBackend):
    """`FLASH_ATTN` with the classes of this module."""

    @staticmethod
    def get_impl_cls() -> type[TreeFlashAttentionImpl]:
        """Return the implementation that layers instantiate."""
        return TreeFlashAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[TreeFlashAttentionMetadataBuilder]:
        """Return the metadata builder."""
        return TreeFlashAttentionMetadataBuilder
