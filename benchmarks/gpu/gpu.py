# SPDX-License-Identifier: Apache-2.0
"""What the GPU of this machine is, without taking memory on it."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.gpu.packing.errors import PackingError
from benchmarks.gpu.packing.project import git

_QUERY = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit")


@dataclass(frozen=True)
class Gpu:
    """The first GPU as nvidia-smi describes it; `memory_bytes` is all it has."""

    name: str
    driver: str
    memory_bytes: int
    max_clock: str
    power_limit: str

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def parse_gpu(line: str) -> Gpu:
    """Read a line of nvidia-smi's CSV, memory in MiB.

    ValueError if it has other columns.
    """
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(_QUERY):
        raise ValueError(f"nvidia-smi said {line!r}")
    name, driver, memory, clock, power = values
    return Gpu(name, driver, int(memory) << 20, f"{clock} MHz", f"{power} W")


def find_gpu() -> Gpu | None:
    """The GPU, or None where nvidia-smi finds none."""
    command = [
        "nvidia-smi",
        f"--query-gpu={','.join(_QUERY)}",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    lines = done.stdout.splitlines()
    return parse_gpu(lines[0]) if lines else None


def commit() -> str | None:
    """The project's git commit, "-dirty" behind it if files were changed; or None."""
    try:
        return git("describe", "--always", "--abbrev=40", "--dirty").strip()
    except PackingError:
        return None
