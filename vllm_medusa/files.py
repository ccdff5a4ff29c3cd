# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_medusa.errors import OutputError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to `path` on success.

    The temporary file is removed if the body raises, so `path` either keeps its
    old content or has the whole new one, which is on the disk by then.

    Raises:
        OutputError: the file can't be written, such as for want of room or permission.
    """
    target = Path(path)
    with writing(target):
        # Named before it is made, so that no signal can come in between.
        name = f".{target.name}.{secrets.token_hex(8)}{_SUFFIX}"
        temporary = target.parent / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(temporary, flags, 0o666))
            yield temporary
            _force_to_disk(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn whatever the body raises for want of room or permission into one error.

    Raises:
        OutputError: naming `target` and the system's reason.
    """
    try:
        yield
    except Exception as error:
        reason = _write_failure(error, target)
        if reason is None:
            raise
        raise OutputError(
            f"cannot write {target} ({reason}): make room, or choose another place"
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of `atomic_path` in `folder`.

    Nobody else may be writing there.
    """
    for path in folder.glob(f".*{_SUFFIX}"):
        path.unlink(missing_ok=True)


_SUFFIX = ".partial"


def _force_to_disk(path: Path) -> None:
    """Some file systems find out only now that there is no room."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def _write_failure(error: Exception, target: Path) -> str | None:
    """Return the system's reason if `error` is a failure to write, else None."""
    if isinstance(error, OSError):
        # A file elsewhere was to be read. Without a number the error is some library's
        # own, not the system's.
        return error.strerror if _is_near(error.filename, target) else None
    # PyTorch hides the error of the file that it writes to.
    hidden = error.__context__
    if isinstance(hidden, OSError) and hidden.errno in _NO_ROOM:
        return hidden.strerror
    # safetensors writes in Rust and has no other way to say it.
    if type(error).__name__ == "SafetensorError":
        found = re.search(r"\(os error (\d+)\)", str(error))
        return os.strerror(int(found[1])) if found else None
    return None


def _is_near(filename: object, target: Path) -> bool:
    """Whether the file that an error names, if any, has to do with `target`."""
    if not isinstance(filename, str | os.PathLike):
        return True
    named, folder = Path(filename).absolute(), target.absolute().parent
    return named.is_relative_to(folder) or folder.is_relative_to(named)
