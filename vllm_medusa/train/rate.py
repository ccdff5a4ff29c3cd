# SPDX-License-Identifier: Apache-2.0
"""The learning rate over the steps of a run."""

from __future__ import annotations

import math


def rate_share(step: int, num_steps: int, warmup: float) -> float:
    """Share of the peak rate: linear warm-up, then a cosine down to a fiftieth.

    Args:
        step: counted from 0.
        num_steps: of the run.
        warmup: share of the steps over which the rate rises from 0.
    """
    rise = max(1, round(warmup * num_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return min(1.0, (step + 1) / rise) * (0.02 + 0.98 * cosine)
