# SPDX-License-Identifier: Apache-2.0
"""Running many cases in processes that may crash, and collecting the outcomes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

CASES = int(os.environ.get("MEDUSA_FUZZ_CASES", "0"))
"""Cases of each family; 0 for what `make test` runs."""

SEED = os.environ.get("MEDUSA_FUZZ_SEED", "2026")
"""Another seed gives other cases."""

_MOST_CRASHES = 20


@dataclass
class Report:
    """What came of the cases.

    Attributes:
        outcomes: number of cases by outcome.
        names: number of cases by kind.
        wrong: a text for each case that did what it may not.
        seconds: the longest case, CPU time.
        bytes: the most memory that a case took.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    bytes: int = 0

    def add(self, family: str, outcome: dict[str, Any]) -> None:
        """Count one case."""
        self.outcomes[outcome["outcome"]] += 1
        self.names[outcome["name"]] += 1
        self.seconds = max(self.seconds, outcome["seconds"])
        self.bytes = max(self.bytes, outcome["bytes"])
        for what in outcome["wrong"]:
            self.wrong.append(
                f"{family} {outcome['case']} ({outcome['name']}): {what}\n"
                f"  {outcome['outcome']}: {outcome['message']}"
            )

    def __str__(self) -> str:
        return (
            f"{sum(self.outcomes.values())} cases, {dict(self.outcomes)}, "
            f"longest {self.seconds:.2f} s, most memory {self.bytes / 2**20:.0f} MiB"
        )


def run_cases(family: str, default: int) -> Report:
    """Run the cases of a family; after a crash the next process goes on."""
    count, first, report = CASES or default, 0, Report()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        Path(scratch).chmod(0o755)
        crashes = 0
        while first < count:
            place = Path(scratch, str(first))
            place.mkdir()
            first, crash = _run_process(family, first, count, place, report)
            if crash is not None:
                report.wrong.append(crash)
                report.outcomes["crashed"] += 1
                crashes += 1
                assert crashes < _MOST_CRASHES, report.wrong
    print(f"{family}: {report}")
    return report


def _run_process(
    family: str, first: int, last: int, place: Path, report: Report
) -> tuple[int, str | None]:
    """Return the case to go on with, and what is known of a crash."""
    command = [sys.executable, "-m", "tests.fuzz.worker", family, SEED]
    command += [str(first), str(last), str(place)]
    environment = {
        **os.environ,
        "HF_HOME": str(place / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8:strict",
        "TERM": "dumb",
    }
    started = first - 1
    # A file: a pipe that nobody reads would block the worker.
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "start" in said:
                started = said["start"]
            else:
                report.add(family, said)
        code = process.wait()
        errors.seek(0)
        text = errors.read().decode(errors="replace")[-3000:]
    if code == 0:
        return last, None
    assert started >= first, f"the worker did not start: {text}"
    return started + 1, f"{family} {started}: the process ended with {code}\n{text}"
