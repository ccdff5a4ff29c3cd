# SPDX-License-Identifier: Apache-2.0
"""The memory of a process and all that it started, over time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

WARM_UP = 1 / 3
"""Share of a run in which buffers and caches fill; what grows then is no leak."""

SLACK_MIB = 16.0
SLACK_SHARE = 0.02
"""A growth over the rest of the run below the larger one of these is none."""


@dataclass(frozen=True)
class Sample:
    """Resident memory, MiB, of each process by role, `seconds` after the start."""

    seconds: float
    mib: dict[str, float]

    @property
    def total(self) -> float:
        """Of all processes. Pages that they share count more than once."""
        return sum(self.mib.values())


def _parents() -> dict[int, int]:
    result = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command's name, in brackets, may hold spaces.
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        result[int(entry.parent.name)] = int(fields[1])
    return result


def _role(pid: int) -> str:
    """What vLLM calls a process, such as "EngineCore"; others by the program."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    words = b" ".join(command).decode(errors="replace")
    for name in ("EngineCore", "Worker", "resource_tracker"):
        if name in words:
            return name
    return Path(words.split(" ", 1)[0]).name


def sample(seconds: float) -> Sample:
    """Measure this process, "client", and its descendants; those of a role together."""
    parents, own = _parents(), os.getpid()
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    mib: dict[str, float] = {}
    for pid in parents:
        ancestor = pid
        while ancestor not in (own, 0, 1):
            ancestor = parents.get(ancestor, 0)
        if ancestor != own:
            continue
        try:
            role = "client" if pid == own else _role(pid)
            resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        except (OSError, IndexError):
            continue
        mib[role] = mib.get(role, 0.0) + resident
    return Sample(seconds, mib)


@dataclass(frozen=True)
class Growth:
    """Memory after the warm-up, MiB: the first and last sample, the slope by least
    squares per minute, and what the slope amounts to over the measured time."""

    first_mib: float
    last_mib: float
    slope_mib_per_minute: float
    growth_mib: float
    tolerance_mib: float

    @property
    def is_leak(self) -> bool:
        """Whether it grew by more than the tolerance."""
        return self.growth_mib > self.tolerance_mib


def growth(samples: Sequence[Sample]) -> Growth:
    """The growth over `samples` after the first `WARM_UP` of their time.

    ValueError for fewer than two samples after that.
    """
    start = samples[0].seconds
    warm = start + WARM_UP * (samples[-1].seconds - start)
    rest = [sample for sample in samples if sample.seconds >= warm]
    if len(rest) < 2:
        raise ValueError("too few samples of memory: run for longer")
    times = [sample.seconds for sample in rest]
    totals = [sample.total for sample in rest]
    mean_time, mean_total = fmean(times), fmean(totals)
    spread = sum((time - mean_time) ** 2 for time in times)
    slope = (
        sum(
            (time - mean_time) * (total - mean_total)
            for time, total in zip(times, totals, strict=True)
        )
        / spread
    )
    return Growth(
        first_mib=round(totals[0], 1),
        last_mib=round(totals[-1], 1),
        slope_mib_per_minute=round(60 * slope, 3),
        growth_mib=round(slope * (times[-1] - times[0]), 1),
        tolerance_mib=round(max(SLACK_MIB, SLACK_SHARE * totals[0]), 1),
    )
