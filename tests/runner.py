# SPDX-License-Identifier: Apache-2.0
"""What this process tests, as the environment variable MEDUSA_TEST_RUNNER says.

- "v1" (default): Model Runner V1, as on a machine without a GPU. Triton is inactive.
- "v2": Model Runner V2 and the Triton kernels, on the CPU through the interpreter.
- "gpu": vLLM as it is on a machine with a GPU; only the tests marked so.
"""

from __future__ import annotations

import os
from typing import TypeVar

import pytest

T = TypeVar("T")

RUNNERS = ("v1", "v2", "gpu")
RUNNER = os.environ.get("MEDUSA_TEST_RUNNER", "v1")
if RUNNER not in RUNNERS:
    raise pytest.UsageError(
        f"MEDUSA_TEST_RUNNER is {RUNNER!r}; set it to one of {', '.join(RUNNERS)}"
    )


def sample(v1: T, v2: T) -> T:
    """Choose by runner: a step takes 2 ms on V1 and 150 ms in the interpreter."""
    return v2 if RUNNER == "v2" else v1


slow_on_v2 = pytest.mark.slow if RUNNER == "v2" else pytest.mark.engine
"""For what has little of its own to prove there."""
