# SPDX-License-Identifier: Apache-2.0
"""The tree part's kernel compiles for GPUs, and its launches fit them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.triton_compile import compiled

# An L4 has 99 KiB per program, the least of the GPUs in mind.
_SHARED_BYTES = 99 * 1024
_NUM_LAUNCHES = 8


# The process that interprets is the one that has the package triton.
@pytest.mark.interpreter
@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_launches_fit(capability: int, tmp_path: Path) -> None:
    launches = compiled("tests.unit.attention.compile_cascade", capability, tmp_path)
    assert [launch.kernel for launch in launches] == [
        "tree_part_kernel"
    ] * _NUM_LAUNCHES
    for launch in launches:
        assert launch.shared_bytes <= _SHARED_BYTES, launch
        assert launch.spilled_bytes == 0, launch
