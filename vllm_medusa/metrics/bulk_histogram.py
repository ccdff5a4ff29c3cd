# SPDX-License-Identifier: Apache-2.0
"""The same value observed many times at once."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from prometheus_client import Histogram


def observe_many(histogram: Any, value: float, count: int) -> None:
    """Observe a value `count` times.

    The front end's event loop does this for every step, with as many observations as
    requests. A histogram of prometheus_client has no public way to add several, so its
    sum and bucket are raised directly; `Histogram.observe` raises the same two, in one
    process and in multiprocess mode. Others, such as vLLM's of Ray, observe one by
    one.

    Args:
        histogram: one with all its labels.
        value: what was observed.
        count: how often, 0 or more.
    """
    if isinstance(histogram, Histogram):
        histogram._sum.inc(value * count)
        histogram._buckets[bisect_left(histogram._upper_bounds, value)].inc(count)
        return
    for _ in range(count):
        histogram.observe(value)
