# SPDX-License-Identifier: Apache-2.0
"""Seconds spent in the parts of a step, for the benchmarks.

Off unless `VLLM_MEDUSA_TIMING=1` is set when the worker starts: then a part costs
two readings of a clock, else one comparison. On a GPU the clock is the device's
(CUDA events), so nothing waits before `read`.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

enabled = os.environ.get("VLLM_MEDUSA_TIMING") == "1"
_seconds: defaultdict[str, float] = defaultdict(float)
_calls: defaultdict[str, int] = defaultdict(int)
_off: AbstractContextManager[None] = nullcontext()
_on_device = False
# Parts whose time the device has yet to tell: (part, start, end).
_pending: list[tuple[str, torch.Event, torch.Event]] = []


def use_device_clock(device_type: str) -> None:
    """Measure what the device does rather than when it is asked; for GPU workers."""
    global _on_device
    _on_device = device_type != "cpu"


def measure(part: str) -> AbstractContextManager[None]:
    """Add the time spent inside the block to `part`."""
    if not enabled:
        return _off
    return _measure_on_device(part) if _on_device else _measure(part)


@contextmanager
def _measure(part: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        _seconds[part] += time.perf_counter() - start
        _calls[part] += 1


@contextmanager
def _measure_on_device(part: str) -> Iterator[None]:
    start, end = torch.Event(enable_timing=True), torch.Event(enable_timing=True)
    start.record()
    try:
        yield
    finally:
        end.record()
        _pending.append((part, start, end))


def read(reset: bool = True) -> dict[str, dict[str, float]]:
    """Return {part: {"seconds": …, "calls": …}} since the last reset."""
    for part, start, end in _pending:
        end.synchronize()
        _seconds[part] += start.elapsed_time(end) / 1e3
        _calls[part] += 1
    _pending.clear()
    result = {
        part: {"seconds": seconds, "calls": _calls[part]}
        for part, seconds in _seconds.items()
    }
    if reset:
        _seconds.clear()
        _calls.clear()
    return result
