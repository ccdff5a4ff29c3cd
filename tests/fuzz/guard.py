# SPDX-License-Identifier: Apache-2.0
"""What a case may not do: run code, write, connect, look elsewhere, take for ever."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HARD_LIMIT = 30
"""Seconds after which a case is taken to hang, and its process ends."""

EXTRA_MEMORY = 1 << 30
"""Bytes of address space that the cases may take beyond what the imports took."""

# Nothing of this may happen, wherever.
_NEVER = {
    "compile",
    "exec",
    "import",
    "marshal.loads",
    "pickle.find_class",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.kill",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.spawn",
    "subprocess.Popen",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "ctypes.dlopen",
    "ctypes.dlsym",
    "urllib.Request",
    "webbrowser.open",
}
# Only in the folder that a case may write to; the first argument is the path.
_CHANGES = {
    "os.chmod",
    "os.chown",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
}
_LOOKS = {"os.listdir", "os.scandir", "medusa.safe_open"}
_PYTHON = (Path(sys.prefix), Path(sys.base_prefix))
# The heads of the default model, which come with the package.
_ASSETS = Path(__file__).resolve().parents[2] / "assets"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass
class Watched:
    """What one case did that it may not, and what it took."""

    folder: Path
    writable: Path
    violations: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0
    peak_bytes: int = 0

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take note of an audit event."""
        if event in _NEVER:
            self.violations.append(f"{event} {str(arguments)[:200]}")
        elif event in _CHANGES:
            self._check(event, arguments[0], (self.writable,))
        elif event in _LOOKS:
            # Python looks for its own modules, also for those that it does not have.
            places = (self.folder, self.writable, _ASSETS, *_PYTHON)
            self._check(event, arguments[0], places)
        elif event == "open":
            path, _, flags = arguments
            places = (self.folder, _ASSETS, self.writable)
            self._check(event, path, places[2:] if flags & _WRITES else places)

    def _check(self, event: str, path: Any, places: tuple[Path, ...]) -> None:
        if isinstance(path, int):  # opened before
            return
        # As it is written: a link is the user's own, a name in a file is not.
        place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (links stay)
        if not any(Path(place).is_relative_to(allowed) for allowed in places):
            self.violations.append(f"{event} {place[:200]!r}")


_watched: Watched | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    global _watched
    case = _watched
    if case is None:
        return
    _watched = None  # what the check itself does is no case's doing
    try:
        case.hear(event, arguments)
    finally:
        _watched = case


def install() -> None:
    """Bound this process's memory and hear what it does, for good."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + EXTRA_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_hook)


@contextlib.contextmanager
def watch(folder: Path, writable: Path) -> Iterator[Watched]:
    """Watch one case, which may read below `folder` and write below `writable`."""
    global _watched
    case = Watched(folder, writable)
    _reset_peak()
    before, start = _peak_bytes(), time.process_time()
    faulthandler.dump_traceback_later(HARD_LIMIT, exit=True)
    _watched = case
    try:
        yield case
    finally:
        _watched = None
        faulthandler.cancel_dump_traceback_later()
        case.cpu_seconds = time.process_time() - start
        case.peak_bytes = _peak_bytes() - before


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
