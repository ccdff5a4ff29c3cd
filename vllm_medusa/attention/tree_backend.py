# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's attention backends see trees, and how layers come to use ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vllm.platforms import current_platform
from vllm.v1.attention import selector
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

_PACKAGE = "vllm_medusa.attention"
# Named, not imported: what a backend needs is there only if vLLM can choose it.
CPU_BACKENDS = {
    AttentionBackendEnum.CPU_ATTN: f"{_PACKAGE}.cpu.TreeCPUAttentionBackend",
}
GPU_BACKENDS = {
    AttentionBackendEnum.FLASH_ATTN: (
        f"{_PACKAGE}.gpu_flash_attn.TreeFlashAttentionBackend"
    ),
    AttentionBackendEnum.FLASHINFER: f"{_PACKAGE}.gpu_flashinfer.TreeFlashInferBackend",
    AttentionBackendEnum.TRITON_ATTN: (
        f"{_PACKAGE}.gpu_triton_attn.TreeTritonAttentionBackend"
    ),
}


def backends() -> dict[AttentionBackendEnum, str]:
    """Return the backends of this platform that see trees, with the class of each."""
    return CPU_BACKENDS if current_platform.is_cpu() else GPU_BACKENDS


@contextmanager
def tree_backend() -> Iterator[None]:
    """Make layers that are built inside use the backends that see trees.

    vLLM chooses a backend as ever and its own registry leads to our class. Backends
    that have none here are refused once chosen (`tree_layers`). The override ends with
    the block, so that another engine of the same process gets vLLM's backends again.
    """
    overridden = backends()
    for backend, path in overridden.items():
        register_backend(backend, path)
    selector._cached_get_attn_backend.cache_clear()
    try:
        yield
    finally:
        for backend in overridden:
            backend.clear_override()
        selector._cached_get_attn_backend.cache_clear()
