# SPDX-License-Identifier: Apache-2.0
"""The kernels compile for a GPU, though none is here to run them."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.triton_compile import compiled


@pytest.mark.interpreter
def test_every_kernel_compiles_for_hopper(tmp_path):
    launches = compiled("tests.unit.kernels.compile_only", 90, tmp_path)
    assert not any(launch.spilled_bytes for launch in launches)
    names = Counter(launch.kernel for launch in launches)
    assert names == {"_walk_kernel": 6, "_move_rows_kernel": 12, "_merge_kernel": 3}
