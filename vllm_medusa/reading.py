# SPDX-License-Identifier: Apache-2.0
"""Files that a user names or the internet brings: what may be opened, and how."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path


def local_path(name: str | os.PathLike[str]) -> Path:
    """The path that `name` means, with ~ for a home as in a shell."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no user of that name: a file may well have it
        return Path(name)


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file to read; links to one are followed.

    A folder has no content, a pipe or a device may block or never end: none of them
    is opened.

    Raises:
        OSError: it is missing, unreadable or no regular file.
        ValueError: the name holds a NUL byte or is no text of the file system.
    """
    _check_regular(Path(path).stat(), path)
    # Should a pipe have taken its place meanwhile, opening does not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{os.fspath(path)!r} is not a regular file")
