# SPDX-License-Identifier: Apache-2.0
"""Reading small JSON files that a user may have written by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vllm_medusa.errors import TreeError

MAX_BYTES = 1 << 20
"""Largest file that is read: a tree of 1024 nodes takes a few kilobytes."""


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Return the content of a JSON file of at most `MAX_BYTES` bytes.

    Args:
        path: the file.
        what: what the file holds, for the error message ("tree", "accuracies").

    Raises:
        TreeError: the file is missing, unreadable, too large or not JSON.
    """
    file = Path(path)
    try:
        if not file.is_file():
            # A folder, a device or a pipe may block or never end.
            reason = "is not a regular file" if file.exists() else "does not exist"
            raise TreeError(f"{what} file {path} {reason}")
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, TreeError):
            raise
        raise TreeError(f"{what} file {path} cannot be read: {error}") from None
    if len(content) > MAX_BYTES:
        raise TreeError(f"{what} file {path} is larger than {MAX_BYTES} bytes")
    return parse_json(content, f"{what} file {path}")


def parse_json(content: str | bytes, what: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        TreeError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise TreeError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise TreeError(f"{what} is not valid JSON: {error}") from None
