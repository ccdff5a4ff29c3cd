# SPDX-License-Identifier: Apache-2.0
"""Reading JSON files that come from a user or from the internet."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vllm_medusa.errors import MedusaError, TreeError

MAX_BYTES = 1 << 20
"""Largest file unless the caller says so: 1024 nodes take a few kilobytes."""


def read_json(
    path: str | os.PathLike[str],
    what: str,
    error: type[MedusaError] = TreeError,
    max_bytes: int = MAX_BYTES,
) -> Any:
    """Return the content of a JSON file of at most `max_bytes` bytes.

    Args:
        path: the file.
        what: what the file holds, for the error message ("tree", "accuracies").
        error: what is raised.
        max_bytes: a larger file is refused before it is read.

    Raises:
        MedusaError: of the type `error`: the file is missing, unreadable, too large
            or not JSON.
    """
    file = Path(path)
    try:
        # A folder has no content; a device or a pipe may block or never end.
        regular = file.is_file() or not file.exists()
        content = b""
        if regular:
            with file.open("rb") as stream:
                content = stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise error(f"{what} file {path} does not exist") from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL byte in the name
        raise error(f"{what} file {str(path)!r} cannot be read: {problem}") from None
    if not regular:
        raise error(f"{what} file {path} is not a regular file")
    if len(content) > max_bytes:
        raise error(f"{what} file {path} is larger than {max_bytes} bytes")
    return parse_json(content, f"{what} file {path}", error)


def parse_json(
    content: str | bytes, what: str, error: type[MedusaError] = TreeError
) -> Any:
    """Return the value of a JSON text.

    Raises:
        MedusaError: of the type `error`: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise error(f"{what} is nested too deeply") from None
    except ValueError as problem:
        raise error(f"{what} is not valid JSON: {problem}") from None
