# SPDX-License-Identifier: Apache-2.0
"""Which files of a wheel are left out."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.gpu.packing.errors import PackingError

STRIP_FILE = Path(__file__).parents[1] / "strip.txt"
GPUS = ("any", "hopper")


@dataclass(frozen=True)
class StripRules:
    """Glob patterns over paths inside wheels; `*` also matches `/`."""

    patterns: tuple[str, ...]

    @classmethod
    def read(cls, gpu: str, path: Path = STRIP_FILE) -> StripRules:
        """The patterns of section [any], and of [`gpu`] if that is another one.

        Raises:
            PackingError: `gpu` is unknown, or a line stands before the first section.
        """
        if gpu not in GPUS:
            raise PackingError(f"unknown GPU {gpu!r}: give one of {', '.join(GPUS)}")
        section = None
        patterns = []
        for line in path.read_text(encoding="utf-8").splitlines():
            line = line.split("#", 1)[0].strip()
            if line.startswith("["):
                section = line.strip("[]")
            elif line and section is None:
                raise PackingError(f"{path}: {line!r} stands before the first section")
            elif line and section in ("any", gpu):
                patterns.append(line)
        return cls(tuple(patterns))

    def removes(self, name: str) -> bool:
        """Whether the file `name` of a wheel is left out."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)
