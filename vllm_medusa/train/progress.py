# SPDX-License-Identifier: Apache-2.0
"""Showing how far a run has come."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import rich.progress
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Progress(Protocol):
    """Shows how far a stage has come."""

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of `total` units."""

    def advance_to(self, done: int) -> None:
        """The stage has done so many units."""


class RichProgress:
    """One bar per stage in the terminal; a context manager.

    Args:
        shown: without, there is nothing to see.
    """

    def __init__(self, shown: bool = True) -> None:
        self._bars = rich.progress.Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not shown,
        )
        self._task = self._bars.add_task("", visible=False)

    def __enter__(self) -> RichProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of `total` units."""
        self._task = self._bars.add_task(name, total=total)

    def advance_to(self, done: int) -> None:
        """The stage has done so many units."""
        self._bars.update(self._task, completed=done)
