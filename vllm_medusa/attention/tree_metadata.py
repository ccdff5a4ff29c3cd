# SPDX-License-Identifier: Apache-2.0
"""How the trees of a step reach the attention layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.kv_cache_interface import KVCacheSpec

from vllm_medusa.attention.tree_rows import TreeRows


class StepTrees(Protocol):
    """The runner's knowledge of a step's trees."""

    def rows(
        self, common: CommonAttentionMetadata, for_capture: bool
    ) -> TreeRows | None:
        """Describe the step's tree rows, or None if causal attention serves them.

        Asked once per KV cache group and step. `for_capture` is True for the dummy
        batch that a full CUDA graph is captured with; the tensors must then lie where
        those of later steps will.
        """


class Preparable(Protocol):
    """An implementation of tree attention whose layers share work of a step."""

    def prepare(self, trees: TreeRows) -> None:
        """Do that work, before the forward pass."""


class TreeMetadataBuilder(AttentionMetadataBuilder[Any]):
    """Mixed into vLLM's builder of a backend: its metadata gets the step's trees.

    vLLM builds metadata before every forward pass, replays of full CUDA graphs
    included. So what layers share is computed here, once, into tensors that keep their
    address.

    Attributes:
        step_trees: asked for the trees; None makes this vLLM's own builder.
        preparables: implementations that the layers of this builder use.
    """

    step_trees: StepTrees | None = None
    preparables: Sequence[Preparable] = ()
    _for_capture = False

    @classmethod
    def get_cudagraph_support(
        cls, vllm_config: VllmConfig, kv_cache_spec: KVCacheSpec
    ) -> AttentionCGSupport:
        """As the backend's, but full graphs of uniform batches at most: rows of trees
        and plain rows take other kernels."""
        support = super().get_cudagraph_support(vllm_config, kv_cache_spec)
        return min(support, AttentionCGSupport.UNIFORM_BATCH, key=lambda s: s.value)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> Any:
        """As the backend's; the metadata has `trees`, a `TreeRows` or None."""
        metadata = self.extend(
            super().build(common_prefix_len, common_attn_metadata, fast_build),
            common_attn_metadata,
        )
        metadata.trees = None
        if self.step_trees is not None:
            metadata.trees = self.step_trees.rows(
                common_attn_metadata, self._for_capture
            )
        if metadata.trees is not None:
            for attention in self.preparables:
                attention.prepare(metadata.trees)
        return metadata

    def build_for_cudagraph_capture(
        self, common_attn_metadata: CommonAttentionMetadata
    ) -> Any:
        """As the backend's, which calls `build`."""
        self._for_capture = True
        try:
            return super().build_for_cudagraph_capture(common_attn_metadata)
        finally:
            self._for_capture = False

    def extend(
        self, metadata: Any, common_attn_metadata: CommonAttentionMetadata
    ) -> Any:
        """Return `metadata` with what tree attention needs and the backend lacks."""
        return metadata
