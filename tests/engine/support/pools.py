# SPDX-License-Identifier: Apache-2.0
"""Sleep on a CPU: memory of pools is lost or kept, as vLLM's GPU allocator does it.

`vllm.device_allocator.cumem.CuMemAllocator` gives memory a tag: that of the innermost
pool in which it was asked for. Asleep, all of it is taken away; what belongs to a kept
tag comes back with its content, at the same address, everything else with whatever lies
there. Here, what this plugin's code makes is noted with its tag, and filled with ones
bit by bit where it would be lost: NaN, or -1. The model's weights and the KV cache,
which vLLM makes, are known by name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.v1.worker import cpu_worker
from vllm.v1.worker.gpu_worker import Worker

import vllm_medusa

_OURS = str(Path(vllm_medusa.__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


def _is_ours() -> bool:
    """Whether this plugin's code asks for what is being made, PyTorch aside."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.startswith(_TORCH):
        assert frame.f_back is not None
        frame = frame.f_back
    return frame.f_code.co_filename.startswith(_OURS)


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


class Pools(TorchDispatchMode):
    """The allocator and, for the worker, vLLM's `CuMemBackend`."""

    def __init__(self, runner: Any = None) -> None:
        super().__init__()
        self.runner = runner
        self._tags: list[str] = []
        # By address. The storages stay alive, so that no address is used again.
        self._noted: dict[int, tuple[torch.UntypedStorage, str]] = {}
        self._asleep: list[tuple[torch.UntypedStorage, str, bytes | None]] = []

    @contextmanager
    def use(self, tag: str) -> Iterator[None]:
        """Enter a pool."""
        self._tags.append(tag)
        try:
            if len(self._tags) > 1:
                yield
            else:
                with self:
                    yield
        finally:
            self._tags.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if _is_ours():
            given = {
                leaf.untyped_storage().data_ptr()
                for leaf in tree_leaves((args, kwargs))
                if isinstance(leaf, torch.Tensor)
            }
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    storage = leaf.untyped_storage()
                    if storage.data_ptr() not in given and storage.nbytes():
                        self._noted[storage.data_ptr()] = storage, self._tags[-1]
        return out

    @property
    def num_bytes(self) -> dict[str, int]:
        """What this plugin asked for, by tag."""
        found: dict[str, int] = {}
        for storage, tag in self._noted.values():
            found[tag] = found.get(tag, 0) + storage.nbytes()
        return found

    def _memory(self) -> list[tuple[torch.UntypedStorage, str]]:
        model = self.runner.model
        weights = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage()
            for tensor in (*model.parameters(), *model.buffers())
            if tensor.nbytes
        }
        caches = [cache.untyped_storage() for cache in self.runner.kv_caches]
        return [
            *((storage, "weights") for storage in weights.values()),
            *((storage, "kv_cache") for storage in caches),
            *self._noted.values(),
        ]

    def suspend(self, level: int = 1) -> None:
        """As `CuMemBackend.suspend`."""
        kept = {"runtime", "cudagraph"} | ({"weights"} if level == 1 else set())
        for storage, tag in self._memory():
            content = bytes(storage) if tag in kept else None
            self._asleep.append((storage, tag, content))
            # Slots of the KV cache that nothing was written to are multiplied by 0.
            _bytes_of(storage).fill_(0 if tag == "kv_cache" else 0xFF)

    def resume(self, tags: list[str] | None = None) -> None:
        """As `CuMemBackend.resume`."""
        deferred = []
        for storage, tag, content in self._asleep:
            if tags is None or tag in tags or tag not in ("weights", "kv_cache"):
                if content is not None:
                    view = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                    _bytes_of(storage).copy_(view)
            else:
                deferred.append((storage, tag, content))
        self._asleep = deferred


def install(monkeypatch: pytest.MonkeyPatch) -> Pools:
    """Let workers that start from now on allocate in pools and sleep as on a GPU."""
    pools = Pools()

    def pool(self: Worker, tag: str) -> Any:
        self._sleep_mode_backend = pools
        return pools.use(tag)

    monkeypatch.setattr(Worker, "_maybe_get_memory_pool_context", pool)
    for name in ("sleep", "wake_up", "discard"):
        monkeypatch.setattr(cpu_worker.CPUWorker, name, getattr(Worker, name))
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda *args: None)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda *args: (1, 2))
    return pools
