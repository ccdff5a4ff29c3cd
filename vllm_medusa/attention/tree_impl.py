# SPDX-License-Identifier: Apache-2.0
"""What vLLM's attention implementations do when their metadata has trees."""

from __future__ import annotations

from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionImpl

from vllm_medusa.attention.interface import TreeAttention
from vllm_medusa.attention.layer_facts import LayerFacts
from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.tree_support import check_layer
from vllm_medusa.attention.xformers_prefix import refusal


class TreeAttentionImpl(AttentionImpl[Any]):
    """Mixed into the implementation of a backend: tree rows are attended apart.

    vLLM has written the step's keys and values to the cache before `forward`
    (`forward_includes_kv_cache_update` is False for every backend that is overridden).

    Attributes:
        tree_attention: what attends the tree rows; set by `use`.
    """

    tree_attention: TreeAttention | None = None
    _scaling: AttentionScaling
    _key_scale: torch.Tensor | None = None
    _value_scale: torch.Tensor | None = None

    def fused_output_quant_supported(self, quant_key: Any) -> bool:
        """Never: the tree part writes numbers of the model's own type."""
        return False

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
        attn_metadata: Any,
        # [num_tokens, num_heads, head_size], written
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the backend's, for rows that are not of a tree."""
        trees = attn_metadata.trees if attn_metadata is not None else None
        if trees is None or not trees.is_whole_step:
            # Of a mixed step it also attends the tree rows, which come first and are
            # overwritten below: its kernels take the whole batch.
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
        if trees is not None:
            self.attend_trees(query, kv_cache, attn_metadata, trees, output)
        return output

    def attend_trees(
        self,
        # [num_tokens, num_heads, head_size]
        query: torch.Tensor,
        # [num_blocks, num_kv_heads, block_size, 2 * head_size]
        kv_cache: torch.Tensor,
        metadata: Any,
        trees: Any,
        # [num_tokens, num_heads, head_size], written
        output: torch.Tensor,
    ) -> None:
        """Attend the tree rows of a step, the first `trees.num_tokens`."""
        assert self.tree_attention is not None
        rows = slice(trees.num_tokens)
        query, output = query[rows], output[rows]
        if query.dtype != output.dtype and self.tree_attention.name == "triton":
            # Numbers that the layer has rounded to 8 bits; their scale is in the keys'.
            query = query.to(output.dtype)
        keys, values = self.cache_views(kv_cache)
        kv = PagedKV(
            keys,
            values,
            metadata.block_table[: trees.num_reqs],
            self._key_scale,
            self._value_scale,
        )
        self.tree_attention.attend(query, kv, trees, output, self._scaling)

    # ([num_blocks, block_size, num_kv_heads, head_size], the same)
    def cache_views(
        self,
        # [num_blocks, num_kv_heads, block_size, 2 * head_size]
        kv_cache: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return views of the keys and of the values.

        The GPU backends keep them side by side, in whatever order the strides say.
        """
        if kv_cache.dtype == torch.uint8:
            kv_cache = kv_cache.view(current_platform.fp8_dtype())
        keys, values = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        return keys, values

    def check_support(self, layer: Any) -> None:
        """Refuse a layer, with a KV cache, that no implementation can serve.

        Raises:
            UnsupportedError: names the layer and the feature.
        """
        check_layer(layer)

    @property
    def window(self) -> int | None:
        """Tokens that a row sees, itself included; None is all."""
        left = self.sliding_window[0]
        return left + 1 if left >= 0 else None

    def facts(self, layer: Any) -> LayerFacts:
        """Return what decides which implementation serves `layer`, a vLLM layer with
        this implementation and a KV cache."""
        keys, values = self.cache_views(layer.kv_cache)
        quantises_queries = keys.dtype.itemsize == 1 and layer.query_quant is not None
        return LayerFacts(
            backend=layer.attn_backend.get_name(),
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            block_size=keys.shape[1],
            query_dtype=keys.dtype if quantises_queries else layer.dtype,
            cache_dtype=keys.dtype,
            sliding_window=self.window,
            soft_cap=float(self.logits_soft_cap or 0.0),
            flash_version=getattr(self, "vllm_flash_attn_version", None),
            needs_whole_pages=getattr(self, "fa4_hd256", False),
            xformers_refusal=refusal(keys, values),
        )

    def use(self, attention: TreeAttention, facts: LayerFacts, layer: Any) -> None:
        """Serve the tree rows of `layer` with `attention`, from now on."""
        self.tree_attention = attention
        self._scaling = AttentionScaling(
            self.scale, facts.sliding_window, facts.soft_cap
        )
        if not facts.is_quantised:
            return
        self._key_scale, self._value_scale = layer._k_scale, layer._v_scale
        if facts.query_dtype.itemsize == 1:
            self._key_scale = layer._k_scale * layer._q_scale
