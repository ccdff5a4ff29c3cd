# SPDX-License-Identifier: Apache-2.0
"""Reading JSON files that come from a user or from the internet, and writing ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_medusa.errors import MedusaError, TreeError
from vllm_medusa.files import atomic_path
from vllm_medusa.reading import open_regular
from vllm_medusa.wording import show

MAX_BYTES = 1 << 20
"""Largest file unless the caller says so: 1024 nodes take a few kilobytes."""

_MAX_BRACKETS = 1 << 20


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
    # A name may hold what a terminal takes for commands.
    text = os.fspath(path)
    name = text if text.isprintable() and len(text) < 400 else show(text, 400)
    try:
        with open_regular(path) as stream:
            content = stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise error(f"{what} file {name} does not exist") from None
    except (OSError, ValueError) as problem:
        raise error(f"{what} file {name} cannot be read: {problem}") from None
    if len(content) > max_bytes:
        raise error(f"{what} file {name} is larger than {max_bytes} bytes")
    return parse_json(content, f"{what} file {name}", error)


def parse_json(
    content: str | bytes, what: str, error: type[MedusaError] = TreeError
) -> Any:
    """Return the value of a JSON text.

    Raises:
        MedusaError: of the type `error`: it is not JSON, nested too deeply, or of more
            than a million lists and objects.
    """
    if isinstance(content, bytes):
        brackets = content.count(b"[") + content.count(b"{")
    else:
        brackets = content.count("[") + content.count("{")
    # Two characters of text become an empty list of 56 bytes.
    if brackets > _MAX_BRACKETS:
        raise error(f"{what} holds more than {_MAX_BRACKETS} lists and objects")
    try:
        return json.loads(content)
    except RecursionError:
        raise error(f"{what} is nested too deeply") from None
    except ValueError as problem:
        raise error(f"{what} is not valid JSON: {problem}") from None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write an object as JSON, its lists of numbers on one line each; a reader never
    meets half of it.

    Raises:
        OutputError: there is no room, or no permission to write.
        ValueError: it holds a number that JSON has no word for.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(_dump(data, 0) + "\n", encoding="utf-8")


def _dump(value: Any, level: int) -> str:
    """JSON with indents for nested values, innermost lists on one line."""
    flat = json.dumps(value, allow_nan=False)
    nested = isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(v, list | dict) for v in value)
    )
    if not nested or len(flat) + 2 * level <= 80:
        return flat
    pad, end = "  " * (level + 1), "  " * level
    if isinstance(value, dict):
        items = [f"{json.dumps(k)}: {_dump(v, level + 1)}" for k, v in value.items()]
        left, right = "{", "}"
    else:
        items = [_dump(item, level + 1) for item in value]
        left, right = "[", "]"
    return f"{left}\n{pad}" + f",\n{pad}".join(items) + f"\n{end}{right}"
