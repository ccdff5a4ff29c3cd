# SPDX-License-Identifier: Apache-2.0
"""The weight of the heads' loss beside the backbone's (paper, section 2.2.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from vllm_medusa.train.medusa2.options import ScheduleKind

HeadsWeight = Callable[[int, int], float]
"""λ0 at (step, num_steps), step counted from 0."""


def constant(weight: float, step: int, num_steps: int) -> float:
    """The same weight at every step: for heads that are trained already."""
    return weight


def sine_ramp(weight: float, step: int, num_steps: int) -> float:
    """weight · sin(π/2 · step / num_steps): 0 at first, `weight` in the end.

    Fresh heads guess badly; their gradients would drive the backbone away.
    """
    return weight * math.sin(math.pi / 2 * step / num_steps)


def heads_weight(kind: ScheduleKind, weight: float) -> HeadsWeight:
    """The weight by step of a schedule whose λ0 is `weight`."""
    return partial(constant if kind == "two-stage" else sine_ramp, weight)
