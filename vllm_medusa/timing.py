# SPDX-License-Identifier: Apache-2.0
"""Seconds spent in the parts of a step, for `benchmarks/step_parts.py`.

Off unless `VLLM_MEDUSA_TIMING=1` is set when the worker starts: then a part costs
two clock readings, else one comparison.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

enabled = os.environ.get("VLLM_MEDUSA_TIMING") == "1"
_seconds: defaultdict[str, float] = defaultdict(float)
_calls: defaultdict[str, int] = defaultdict(int)
_off: AbstractContextManager[None] = nullcontext()


def measure(part: str) -> AbstractContextManager[None]:
    """Add the time spent inside the block to `part`."""
    return _measure(part) if enabled else _off


@contextmanager
def _measure(part: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        _seconds[part] += time.perf_counter() - start
        _calls[part] += 1


def read(reset: bool = True) -> dict[str, dict[str, float]]:
    """Return {part: {"seconds": …, "calls": …}} since the last reset."""
    result = {
        part: {"seconds": seconds, "calls": _calls[part]}
        for part, seconds in _seconds.items()
    }
    if reset:
        _seconds.clear()
        _calls.clear()
    return result
