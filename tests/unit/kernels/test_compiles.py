# SPDX-License-Identifier: Apache-2.0
"""The kernels compile for a GPU, though none is here to run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.interpreter
def test_every_kernel_compiles_for_hopper(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "tests.unit.kernels.compile_only"],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    launches = json.loads(process.stdout.splitlines()[-1])
    assert all(size > 0 for _, size in launches)
    names = Counter(name for name, _ in launches)
    assert names == {"_walk_kernel": 6, "_move_rows_kernel": 12, "_merge_kernel": 3}
