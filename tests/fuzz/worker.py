# SPDX-License-Identifier: Apache-2.0
"""A process that runs cases one after another and says what came of each.

`python -m tests.fuzz.worker FAMILY SEED FIRST LAST SCRATCH` writes one JSON object a
line: {"start": N} before a case, so that a crash has a name, and its outcome after it.
"""

from __future__ import annotations

import codecs
import ctypes
import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Protocol

from rich.cells import cell_len

from tests.fuzz import checkpoint_cases, guard, option_cases
from vllm_medusa.errors import MedusaError

_NOBODY = 65534
_DUMPABLE = 4
# Python imports each when it is first met, in the name of a zip's record or in JSON.
_ENCODINGS = (
    "cp437",
    "utf-8-sig",
    "utf-7",
    "idna",
    *tuple(f"utf-{width}{order}" for width in (16, 32) for order in ("", "-le", "-be")),
)


class Family(Protocol):
    """What a module of cases offers."""

    def prepare(self, scratch: Path) -> None:
        """Import and warm up all that a case may need."""

    def make(self, number: int, random: Random, scratch: Path) -> Any:
        """Make a case; it has `name`, `folder`, `writable`, `refused` and `canary`."""

    def run(self, case: Any) -> str | None:
        """Run it: None if the input was taken, else what the user reads.

        Raises:
            MedusaError: it was refused.
        """


FAMILIES: dict[str, Family] = {
    "checkpoints": checkpoint_cases,
    "options": option_cases,
}


def main(family: str, seed: str, first: str, last: str, scratch: str) -> None:
    """Run the cases `first` to `last` - 1."""
    cases, place = FAMILIES[family], Path(scratch)
    warnings.simplefilter("ignore")
    os.environ["HOME"] = str(place)
    cases.prepare(place / "forms")
    for encoding in _ENCODINGS:
        codecs.lookup(encoding)
    cell_len("\u6f22e\u0301\U0001f600")  # reads tables of such characters
    _be_nobody(place)
    guard.install()
    for number in range(int(first), int(last)):
        _say({"start": number})
        with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as own:
            random = Random(f"{seed}:{family}:{number}")
            _say(_outcome(number, cases.make(number, random, Path(own)), cases.run))


def _outcome(
    number: int, case: Any, run: Callable[[Any], str | None]
) -> dict[str, Any]:
    """Run a case and judge it; `wrong` lists what a valid outcome does not have."""
    wrong: list[str] = []
    outcome, message = "taken", ""
    failure: BaseException | None = None
    with guard.watch(case.folder, case.writable) as watched:
        try:
            message = run(case) or ""
        except MedusaError as error:
            outcome, message = "refused", str(error)
        except BaseException as error:
            outcome, failure = "failed", error
    if failure is not None:
        wrong.append("".join(traceback.format_exception(failure, limit=-6))[-3000:])
    if not message.replace("\n", "").isprintable():
        wrong.append(f"the message holds control characters: {message[:300]!r}")
    if outcome == "refused" and not 10 <= len(message) <= 8000 + case.longest:
        wrong.append(f"the message has {len(message)} characters: {message[:300]!r}")
    if case.refused and outcome == "taken":
        wrong.append("it was taken")
    if case.canary.exists():
        wrong.append("its code ran")
        case.canary.unlink()
    if watched.cpu_seconds > case.most_seconds:
        wrong.append(f"it took {watched.cpu_seconds:.1f} s")
    if watched.peak_bytes > case.most_bytes:
        wrong.append(f"it took {watched.peak_bytes >> 20} MiB")
    _restore(case.folder)
    return {
        "case": number,
        "name": case.name,
        "outcome": outcome,
        "message": message[:300],
        "wrong": wrong + watched.violations,
        "seconds": watched.cpu_seconds,
        "bytes": watched.peak_bytes,
    }


def _restore(folder: Path) -> None:
    """Give back the permission that tidying up needs."""
    if folder.is_dir():
        folder.chmod(0o700)


def _be_nobody(place: Path) -> None:
    """Root may read everything, and so would never be refused a file."""
    if os.geteuid() != 0:
        return
    os.chown(place, _NOBODY, _NOBODY)
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    # Else /proc/self, where the memory is read, would stay root's.
    ctypes.CDLL(None).prctl(_DUMPABLE, 1, 0, 0, 0)


def _say(line: dict[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(line) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    main(*sys.argv[1:])
