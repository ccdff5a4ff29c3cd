# SPDX-License-Identifier: Apache-2.0
"""vLLM's backend FLASHINFER, taught to see trees."""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.flashinfer import (
    FlashInferBackend,
    FlashInferImpl,
    FlashInferMetadataBuilder,
)

from vllm_medusa.attention.tree_impl import TreeAttentionImpl
from vllm_medusa.attention.tree_metadata import TreeMetadataBuilder


class TreeFlashInferMetadataBuilder(TreeMetadataBuilder, FlashInferMetadataBuilder):
    """Attaches the step's trees, and the block table, to FlashInfer's metadata."""

    def extend(
        self, metadata: Any, common_attn_metadata: CommonAttentionMetadata
    ) -> Any:
        """FlashInfer keeps lists of pages instead of the block table."""
        metadata.block_table = common_attn_metadata.block_table_tensor
        return metadata


class TreeFlashInferImpl(TreeAttentionImpl, FlashInferImpl):
    """Attends tree rows apart; every other row goes through FlashInfer."""


class TreeFlashInferBackend(FlashInferBackend):
    """`FLASHINFER` with the classes of this module."""

    @staticmethod
    def get_impl_cls() -> type[TreeFlashInferImpl]:
        """Return the implementation that layers instantiate."""
        return TreeFlashInferImpl

    @staticmethod
    def get_builder_cls() -> type[TreeFlashInferMetadataBuilder]:
        """Return the metadata builder."""
        return TreeFlashInferMetadataBuilder
