# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile checkpoints: a typed error or a valid load, and nothing else.

`MEDUSA_FUZZ_CASES=100000 pytest tests/fuzz` runs more cases, `MEDUSA_FUZZ_SEED` others.
"""

from __future__ import annotations

from tests.fuzz.checkpoint_cases import ATTACKS
from tests.fuzz.run import run_cases


def test_checkpoints():
    report = run_cases("checkpoints", default=1500)
    assert not report.wrong, "\n\n".join(report.wrong[:20])
    # Not a test of what never loads or never fails.
    assert report.outcomes["taken"] > 100
    assert report.outcomes["refused"] > 1000
    assert {attack.name for attack in ATTACKS} <= set(report.names)
