# SPDX-License-Identifier: Apache-2.0
"""What the choice of an implementation of tree attention depends on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_medusa.attention.prefix_flash import SplitBound


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """One attention layer; layers with the same facts share an implementation."""

    backend: str
    """vLLM's name of its attention backend, such as "FLASH_ATTN"."""
    num_heads: int
    num_kv_heads: int
    head_size: int
    block_size: int
    query_dtype: torch.dtype
    """As the implementation gets them: 8-bit if the layer quantises them."""
    cache_dtype: torch.dtype
    sliding_window: int | None = None
    soft_cap: float = 0.0
    flash_version: int | None = None
    """FlashAttention that vLLM chose for the layer; None for other backends."""
    needs_whole_pages: bool = False
    """Whether that FlashAttention takes lengths of whole pages only."""
    xformers_refusal: str | None = None
    """Why xformers can't read the layer's cache."""

    @property
    def is_quantised(self) -> bool:
        """Whether the cache holds 8-bit numbers."""
        return self.cache_dtype.itemsize == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFacts:
    """The device and the bounds of a step's batch."""

    device: torch.device
    capability: tuple[int, int] | None
    """CUDA compute capability; None on other devices."""
    has_triton: bool
    """Whether Triton kernels run: compiled, or in its interpreter."""
    max_num_reqs: int
    """Requests of a step, those of padding included."""
    max_head_size: int
    """Of all layers."""
    splits: SplitBound
