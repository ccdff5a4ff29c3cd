# SPDX-License-Identifier: Apache-2.0
"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_medusa.errors import OutputError

logger = logging.getLogger(__name__)


class _Held(threading.local):
    """Folders that a thread has: a second descriptor would wait for the first."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()


_held = _Held()


@contextmanager
def exclusive(folder: Path, *, wait: bool) -> Iterator[None]:
    """Keep others that ask for `folder` out; it is made if need be.

    The lock is the folder's own, so that it leaves no file behind, and ends with the
    process, however that ends. Where the file system has no such locks there is none.
    What a thread has it may ask for again, inside the block.

    Raises:
        OutputError: another process has it and `wait` is False, or the folder can't
            be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(
            f"{folder} can't be made ({error.strerror}): choose another folder"
        ) from error
    path = folder.resolve()
    try:
        if path in _held.folders:
            yield
            return
        _lock(descriptor, folder, wait)
        _held.folders.add(path)
        try:
            yield
        finally:
            _held.folders.remove(path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise OutputError(
                f"another process is at work in {folder}: let it end, or choose "
                "another folder"
            ) from None
        logger.warning("waiting for another process that is at work in %s", folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        # A file system without locks.
        pass
