# SPDX-License-Identifier: Apache-2.0
"""Which implementation of tree attention serves a layer."""

from __future__ import annotations

from typing import Literal

from vllm_medusa.attention.layer_facts import LayerFacts, PlatformFacts
from vllm_medusa.errors import UnsupportedError

Name = Literal["cpu", "triton", "cascade", "xformers"]
Option = Literal["auto", "triton", "cascade", "xformers"]

# Below, Triton can't convert 8-bit floats of the form e4m3.
_FP8_CAPABILITY = (8, 9)
_FLASH_ATTENTION = "FLASH_ATTN"
_AMPERE = (8, 0)


def choose(option: Option, layer: LayerFacts, platform: PlatformFacts) -> Name:
    """Return the implementation for a layer.

    "auto" is the cascade with FlashAttention where that can serve the layer, so that
    the context costs what it costs in plain decoding, and Triton elsewhere; on a CPU
    it is "cpu", the PyTorch kernel of that backend's own.

    Raises:
        UnsupportedError: if the one that was asked for can't serve the layer; says
            why, and what to use instead.
    """
    if option == "auto":
        if layer.backend == "CPU_ATTN":
            return "cpu"
        option = "triton" if _refuse_cascade(layer, platform) else "cascade"
    reason = {
        "triton": _refuse_triton,
        "cascade": _refuse_cascade,
        "xformers": _refuse_xformers,
    }[option](layer, platform)
    if reason is not None:
        raise UnsupportedError(f"attention={option}: {reason}")
    return option


def _refuse_triton(layer: LayerFacts, platform: PlatformFacts) -> str | None:
    if not platform.has_triton:
        return "Triton is not available here: use attention=auto"
    if (
        layer.is_quantised
        and platform.capability is not None
        and platform.capability < _FP8_CAPABILITY
    ):
        return (
            "a KV cache of fp8 needs compute capability 8.9, this GPU has "
            f"{_dotted(platform.capability)}: use --kv-cache-dtype auto"
        )
    return None


def _refuse_cascade(layer: LayerFacts, platform: PlatformFacts) -> str | None:
    if reason := _refuse_parts(layer, platform):
        return reason
    if layer.backend == "FLASHINFER":
        return (
            "FlashInfer plans its kernels from lengths on the host, which a step does "
            "not have before the device does: use attention=triton, or "
            f"--attention-backend {_FLASH_ATTENTION}"
        )
    if layer.backend != _FLASH_ATTENTION or layer.flash_version is None:
        return (
            f"the backend {layer.backend} has no kernel that returns a log-sum-exp: "
            f"use attention=triton, or --attention-backend {_FLASH_ATTENTION}"
        )
    if layer.needs_whole_pages:
        return (
            "FlashAttention 4 takes whole pages only for this head size "
            f"({layer.head_size}): use attention=triton"
        )
    if layer.is_quantised and layer.flash_version != 3:
        return (
            f"with a KV cache of fp8, FlashAttention {layer.flash_version} is not "
            "supported here: use attention=triton or --kv-cache-dtype auto"
        )
    return None


def _refuse_xformers(layer: LayerFacts, platform: PlatformFacts) -> str | None:
    if reason := _refuse_parts(layer, platform):
        return reason
    if layer.soft_cap:
        return "xformers has no soft cap of scores: use attention=triton"
    if layer.xformers_refusal is not None:
        return f"{layer.xformers_refusal}; or use attention=triton"
    return None


def _refuse_parts(layer: LayerFacts, platform: PlatformFacts) -> str | None:
    """What keeps any implementation in two parts from serving a layer."""
    if platform.capability is None:
        return (
            f"its kernels need a CUDA GPU, this engine runs on {platform.device.type}: "
            "use attention=auto"
        )
    if platform.capability < _AMPERE:
        return (
            "its kernels need compute capability 8.0, this GPU has "
            f"{_dotted(platform.capability)}: use attention=triton"
        )
    if layer.sliding_window is not None:
        return (
            f"a sliding window ({layer.sliding_window} tokens) cuts the prefix at "
            "another place for each depth of a tree: use attention=triton, or auto, "
            "which uses it for such layers only"
        )
    return _refuse_triton(layer, platform)


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
