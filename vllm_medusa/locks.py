# SPDX-License-Identifier: Apache-2.0
"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_medusa.errors import OutputError


@contextmanager
def exclusive(folder: Path, *, wait: bool) -> Iterator[None]:
    """Keep other processes that ask for `folder` out; it is made if need be.

    The lock is the folder's own, so that it leaves no file behind, and ends with the
    process, however that ends. Where the file system has no such locks there is none.

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
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise OutputError(
                f"another process is at work in {folder}: let it end, or choose "
                "another folder"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
