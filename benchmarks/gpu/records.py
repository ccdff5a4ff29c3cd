# SPDX-License-Identifier: Apache-2.0
"""A result file that grows cell by cell, so that a run cut short can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.results import write_result


class Records:
    """Timings by attention, place and row count in a JSON file.

    A file of an earlier run with the same `settings` is continued.

    Args:
        path: the file.
        settings: what must be equal for timings to belong together; joins the file.

    Raises:
        ValueError: the file holds timings with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self.content: dict[str, Any] = {"settings": dict(settings)}
        self.content |= {"engines": {}, "cells": [], "parts": [], "speed": []}
        self.content |= {"projected": [], "refused": {}}
        if path.exists():
            found = json.loads(path.read_text())
            if found["settings"] != self.content["settings"]:
                raise ValueError(
                    f"{path} was measured with other settings: move it away, or give "
                    "another --output"
                )
            for key in self.content:
                self.content[key] = found[key]

    def has(self, kind: str, **place: Any) -> bool:
        """Whether `kind` ("cells", "parts" or "speed") has a record of this place.

        A place is told by its attention, rows, and context, batch or concurrency.
        """
        return any(
            all(record[key] == value for key, value in place.items())
            for record in self.content[kind]
        )

    def add(self, kind: str, figures: Mapping[str, Any], **place: Any) -> None:
        """Add a record and write the file."""
        self.content[kind].append({**place, **figures})
        self.save()

    def save(self) -> None:
        """Write everything; a reader never meets half of it."""
        write_result(self._path, "gpu.bench", self.content)
