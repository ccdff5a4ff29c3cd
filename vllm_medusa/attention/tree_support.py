# SPDX-License-Identifier: Apache-2.0
"""What no implementation of tree attention on GPUs can serve, by name."""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backend import AttentionType

from vllm_medusa.errors import UnsupportedError

# Both are e4m3 with one scale per tensor.
_FP8_CACHES = ("fp8", "fp8_e4m3")


def check_scores(impl: Any, name: str) -> None:
    """Refuse terms of the scores that depend on more than query and key.

    Raises:
        UnsupportedError: for ALiBi and attention sinks.
    """
    if impl.alibi_slopes is not None:
        raise UnsupportedError(
            f"{name}: tree attention does not support ALiBi: serve this model "
            "without Medusa"
        )
    if impl.sinks is not None:
        raise UnsupportedError(
            f"{name}: tree attention does not support attention sinks: serve this "
            "model without Medusa"
        )


def check_layer(layer: Any) -> None:
    """Refuse a vLLM attention layer that no implementation can serve.

    Raises:
        UnsupportedError: names the layer and the feature.
    """
    impl, name = layer.impl, layer.layer_name
    check_scores(impl, name)
    # FlashInfer, which refuses all others itself, has no such attribute.
    attn_type = getattr(impl, "attn_type", AttentionType.DECODER)
    if attn_type != AttentionType.DECODER:
        raise UnsupportedError(
            f"{name}: tree attention serves decoder layers, not {attn_type!r}: "
            "serve this model without Medusa"
        )
    if getattr(impl, "chunk_lookback", -1) != -1:
        raise UnsupportedError(
            f"{name}: tree attention does not support chunked attention: serve this "
            "model without Medusa"
        )
    cache = layer.kv_cache
    is_quantised = cache.dtype.itemsize == 1
    if is_quantised and impl.kv_cache_dtype not in _FP8_CACHES:
        raise UnsupportedError(
            f"{name}: tree attention does not read a KV cache of type "
            f"{impl.kv_cache_dtype!r}: use --kv-cache-dtype auto or fp8"
        )
    if is_quantised and any(
        scale.numel() != 1 for scale in (layer._q_scale, layer._k_scale, layer._v_scale)
    ):
        raise UnsupportedError(
            f"{name}: tree attention reads a KV cache of fp8 with one scale per "
            "tensor, not one per head: use --kv-cache-dtype auto"
        )
    expected = (impl.num_kv_heads, 2 * impl.head_size)
    if cache.ndim != 4 or (cache.shape[1], cache.shape[3]) != expected:
        raise UnsupportedError(
            f"{name}: tree attention does not know a KV cache of shape "
            f"{tuple(cache.shape)}; [blocks, {expected[0]}, tokens, {expected[1]}] was "
            "expected: use --kv-cache-dtype auto"
        )
