# SPDX-License-Identifier: Apache-2.0
"""The output folder, whose entries are replaced all at once or not at all.

OUTPUT/.new is what a run is writing. When it is complete OUTPUT/.old is made, what
stands in the way goes there, and the new entries to their names. So where there is an
`.old` and still something in `.new`, a swap was cut short, and can be undone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vllm_medusa.files import writing
from vllm_medusa.locks import exclusive

BACKBONE, HEADS = "backbone", "heads"
"""Folders of the output."""

REPORT_FILE = "quality.json"
"""The guard's report, in the output and in the work folder."""

_ENTRIES = {BACKBONE, HEADS, REPORT_FILE}
_NEW, _OLD = ".new", ".old"


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Keep others out of `output`, and see that it can be written.

    What a killed run left there is undone first. The folder is removed again if it
    was made here and is still empty at the end.

    Raises:
        OutputError: it is no folder, can't be written, or another run is at work there.
    """
    made = not output.exists()
    with exclusive(output, wait=False):
        try:
            _settle(output)
            with writing(output / _NEW):
                (output / _NEW).mkdir()
                (output / _NEW).rmdir()
            yield
        finally:
            if made:
                with suppress(OSError):
                    output.rmdir()


@contextmanager
def new_output(output: Path) -> Iterator[Path]:
    """Yield an empty folder whose entries replace those of `output` on success.

    Entries are `BACKBONE`, `HEADS` and `REPORT_FILE`. If the body or the replacement
    fails, `output` is as it was.

    Raises:
        OutputError: as `claimed`.
    """
    with claimed(output):
        new = output / _NEW
        try:
            with writing(new):
                new.mkdir()
            yield new
            with writing(output):
                _swap(output)
        finally:
            _settle(output)


def _swap(output: Path) -> None:
    """Put the entries of `.new` to their names, those in their way into `.old`."""
    old = output / _OLD
    old.mkdir()
    for entry in sorted((output / _NEW).iterdir()):
        target = output / entry.name
        if target.exists():
            target.rename(old / entry.name)
        entry.rename(target)


def _settle(output: Path) -> None:
    """Undo a swap that was cut short, and clear away what one leaves.

    May itself be cut short at any place, and be done again.
    """
    new, old = output / _NEW, output / _OLD
    with writing(output):
        waiting = {entry.name for entry in new.iterdir()} if new.is_dir() else set()
        if waiting and old.is_dir():
            for name in sorted(_ENTRIES - waiting):
                if (output / name).exists():
                    (output / name).rename(new / name)
            for entry in sorted(old.iterdir()):
                entry.rename(output / entry.name)
            # Before `.new` is emptied: until then it tells what was not in place.
            old.rmdir()
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
