# SPDX-License-Identifier: Apache-2.0
"""The kernels compile for GPUs, and their launches fit them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.triton_compile import Launch

ROOT = Path(__file__).parents[3]
# An L4 has 99 KiB per program, the least of the GPUs in mind.
_SHARED_BYTES = 99 * 1024


# The process that interprets is the one that has the package triton.
@pytest.mark.interpreter
@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_launches_fit(capability: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.attention.compile_triton", str(capability)],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    launches = [Launch(**one) for one in json.loads(done.stdout.splitlines()[-1])]
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
