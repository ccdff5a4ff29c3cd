# SPDX-License-Identifier: Apache-2.0
"""The kernels compile for GPUs, and their launches fit them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.triton_compile import compiled

# An L4 has 99 KiB per program, the least of the GPUs in mind.
_SHARED_BYTES = 99 * 1024


# The process that interprets is the one that has the package triton.
@pytest.mark.interpreter
@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_launches_fit(capability: int, tmp_path: Path) -> None:
    launches = compiled("tests.unit.attention.compile_triton", capability, tmp_path)
    for launch in launches:
        print(f"sm_{capability}: {launch}")
        assert launch.shared_bytes <= _SHARED_BYTES
        if launch.kernel != "kernel_unified_attention":
            # A register or two; more would be paid in every tile of keys.
            assert launch.spilled_bytes <= 128
    names = Counter(launch.kernel for launch in launches)
    assert names == {
        "attend_rows": 8,
        # All but the batch of eight, which fills the device.
        "merge_parts": 7,
        "kernel_unified_attention": 2,
    }
