# SPDX-License-Identifier: Apache-2.0
"""Option texts, dicts, trees and command lines: a typed error, or they work."""

from __future__ import annotations

from tests.fuzz.run import run_cases


def test_options():
    report = run_cases("options", default=1500)
    assert not report.wrong, "\n\n".join(report.wrong[:20])
    assert report.outcomes["taken"] > 100
    assert report.outcomes["refused"] > 1000
