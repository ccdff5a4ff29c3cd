# SPDX-License-Identifier: Apache-2.0
"""A tier for vLLM's offloading connector that works on a CPU.

vLLM's own tier copies with CUDA. Scheduler, connector and the time of each copy are
vLLM's; only the copy itself is done here, at once when it is submitted.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class CopyWorker(OffloadingWorker):
    """Copies blocks between the KV caches and tensors beside them.

    `num_stored` and `num_loaded` count blocks of all engines of the process.
    """

    num_stored: ClassVar[int] = 0
    num_loaded: ClassVar[int] = 0

    def __init__(self, kv_caches: CanonicalKVCaches, num_chunks: int) -> None:
        self._caches = [cache.tensor for cache in kv_caches.tensors]
        self._groups = kv_caches.group_data_refs
        self._tier = [
            torch.zeros(num_chunks, cache.shape[1], dtype=cache.dtype)
            for cache in self._caches
        ]
        self._done: list[TransferResult] = []

    def _pairs(self, blocks: GPULoadStoreSpec, chunks: Any) -> list[tuple[int, ...]]:
        """(tensor, block, chunk) of everything to copy."""
        pairs: list[tuple[int, ...]] = []
        first = 0
        for refs, size in zip(self._groups, blocks.group_sizes, strict=True):
            last = first + size
            for block, chunk in zip(
                blocks.block_ids[first:last], chunks.block_ids[first:last], strict=True
            ):
                pairs += [(ref.tensor_idx, int(block), int(chunk)) for ref in refs]
            first = last
        return pairs

    def submit_store(
        self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: Any
    ) -> bool:
        for tensor, block, chunk in self._pairs(src_spec, dst_spec):
            self._tier[tensor][chunk] = self._caches[tensor][block]
        CopyWorker.num_stored += len(src_spec.block_ids)
        self._done.append(TransferResult(job_id, True))
        return True

    def submit_load(
        self, job_id: int, src_spec: Any, dst_spec: GPULoadStoreSpec
    ) -> bool:
        for tensor, block, chunk in self._pairs(dst_spec, src_spec):
            self._caches[tensor][block] = self._tier[tensor][chunk]
        CopyWorker.num_loaded += len(dst_spec.block_ids)
        self._done.append(TransferResult(job_id, True))
        return True

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """Every copy is done when it is submitted."""


class CopyingSpec(CPUOffloadingSpec):
    """Named in `kv_connector_extra_config`: "spec_name" and "spec_module_path"."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        return CopyWorker(kv_caches, self.num_chunks)
