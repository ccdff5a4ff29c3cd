# SPDX-License-Identifier: Apache-2.0
"""Connect the attention layers of a loaded model with the trees of its steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.triton_utils import HAS_TRITON

from vllm_medusa.attention.cascade import CascadeTreeAttention
from vllm_medusa.attention.choose import Option, choose
from vllm_medusa.attention.interface import TreeAttention
from vllm_medusa.attention.layer_facts import LayerFacts, PlatformFacts
from vllm_medusa.attention.prefix_flash import FlashPrefix, FlashShape, SplitBound
from vllm_medusa.attention.tree_backend import backends
from vllm_medusa.attention.tree_impl import TreeAttentionImpl
from vllm_medusa.attention.tree_metadata import StepTrees, TreeMetadataBuilder
from vllm_medusa.errors import UnsupportedError


class TreeAttentions:
    """The implementations of one engine; layers of the same shape share one."""

    def __init__(
        self,
        option: Option,
        platform: PlatformFacts,
        # [max_width, max_width] bool, if every request verifies this tree
        fixed_ancestors: torch.Tensor | None = None,
    ) -> None:
        self._option: Option = option
        self._platform = platform
        self._fixed_ancestors = fixed_ancestors
        # By name, and for the cascade by shape as well.
        self._made: dict[str | FlashShape, TreeAttention] = {}

    @property
    def names(self) -> list[str]:
        """Implementations in use; none is the CPU backend's own kernel."""
        return sorted({attention.name for attention in self._made.values()})

    @property
    def num_bytes(self) -> int:
        """Device memory of their buffers."""
        return sum(attention.num_bytes for attention in self._made.values())

    def of(self, layer: LayerFacts) -> TreeAttention | None:
        """Return what serves a layer, None for the CPU backend's own kernel.

        Raises:
            UnsupportedError: see `choose`.
        """
        name = choose(self._option, layer, self._platform)
        if name == "cpu":
            return None
        key = _flash_shape(layer) if name == "cascade" else name
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def _make(self, key: str | FlashShape) -> TreeAttention:
        platform = self._platform
        max_num_reqs, device = platform.max_num_reqs, platform.device
        if isinstance(key, FlashShape):
            prefix = FlashPrefix(key, max_num_reqs, platform.splits, device)
            return CascadeTreeAttention(prefix, max_num_reqs, device)
        if key == "xformers":
            from vllm_medusa.attention.xformers_attention import XformersTreeAttention

            return XformersTreeAttention(max_num_reqs, device)
        from vllm_medusa.attention.triton_choice import triton_tree_attention

        return triton_tree_attention(
            device, platform.max_head_size, self._fixed_ancestors
        )


def connect_layers(
    vllm_config: VllmConfig,
    # of all KV cache groups, with builders; the layers have their KV caches
    groups: Iterable[Any],
    step_trees: StepTrees,
    option: Option,
    device: torch.device,
    # [max_width, max_width] bool on `device`, if every request verifies this tree
    fixed_ancestors: torch.Tensor | None = None,
) -> TreeAttentions:
    """Give the groups' builders `step_trees`, and each layer its implementation.

    `groups` are vLLM's `AttentionGroup`; `option` is the engine's `attention`.

    Raises:
        UnsupportedError: names the layer or backend that can't be served.
    """
    groups = list(groups)
    context = vllm_config.compilation_config.static_forward_context
    facts: dict[str, LayerFacts] = {}
    for group in groups:
        for name in group.layer_names:
            facts[name] = _facts(name, context[name], group.backend)
    platform = _platform_facts(vllm_config, device, facts.values())
    attentions = TreeAttentions(option, platform, fixed_ancestors)
    for group in groups:
        used: dict[int, TreeAttention] = {}
        for name in group.layer_names:
            attention = attentions.of(facts[name])
            if attention is not None:
                context[name].impl.use(attention, facts[name], context[name])
                used[id(attention)] = attention
        for builder in group.metadata_builders:
            assert isinstance(builder, TreeMetadataBuilder)
            builder.step_trees = step_trees
            builder.preparables = [
                attention
                for attention in used.values()
                if isinstance(attention, CascadeTreeAttention)
            ]
    return attentions


def _facts(name: str, layer: Any, backend: Any) -> LayerFacts:
    impl = getattr(layer, "impl", None)
    if not isinstance(impl, TreeAttentionImpl):
        known = ", ".join(backend.name for backend in backends())
        raise UnsupportedError(
            f"{name}: tree attention does not support the backend "
            f"{backend.get_name()}: choose one of {known} with --attention-backend; "
            "models with other kinds of layers are served without Medusa"
        )
    impl.check_support(layer)
    return impl.facts(layer)


def _platform_facts(
    vllm_config: VllmConfig, device: torch.device, layers: Iterable[LayerFacts]
) -> PlatformFacts:
    compilation = vllm_config.compilation_config
    largest_graph = compilation.max_cudagraph_capture_size or 0
    splits = SplitBound()
    if compilation.cudagraph_mode.has_full_cudagraphs():
        splits = SplitBound(
            vllm_config.attention_config.flash_attn_max_num_splits_for_cuda_graph,
            largest_graph,
        )
    return PlatformFacts(
        device=device,
        capability=(
            torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        ),
        has_triton=HAS_TRITON,
        max_num_reqs=max(vllm_config.scheduler_config.max_num_seqs, largest_graph),
        max_head_size=max(layer.head_size for layer in layers),
        splits=splits,
    )


def _flash_shape(layer: LayerFacts) -> FlashShape:
    assert layer.flash_version is not None
    return FlashShape(
        version=layer.flash_version,
        num_heads=layer.num_heads,
        num_kv_heads=layer.num_kv_heads,
        head_size=layer.head_size,
        block_size=layer.block_size,
        dtype=layer.query_dtype,
        has_soft_cap=layer.soft_cap != 0.0,
    )
