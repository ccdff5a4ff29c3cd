# SPDX-License-Identifier: Apache-2.0
"""Quoting bad input in messages: short, printable, whatever it is."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LIMIT = 60
_DEPTH = 4
_BRACKETS: dict[type, str] = {list: "[]", tuple: "()", dict: "{}"}


def show(value: object, limit: int = _LIMIT) -> str:
    """Return a repr of at most `limit` characters, without control characters.

    The time it takes does not grow with the value: of lists and texts only the start
    is looked at, nothing is followed deeper than four levels, and a number with
    thousands of digits (of which Python makes no text) is named as such.
    """
    text = _repr(value, limit, _DEPTH)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def suggest(word: object, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" if a known word is close, else nothing."""
    # What is longer than any known word is close to none, and slow to compare.
    close = get_close_matches(word[:_LIMIT], known, n=1) if type(word) is str else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def _repr(value: object, limit: int, depth: int) -> str:
    if isinstance(value, str):
        return repr(str.__getitem__(value, slice(limit + 1)))
    if isinstance(value, bytes | bytearray):
        return repr(bytes(value[: limit + 1]))
    if isinstance(value, int) and value.bit_length() > 512:
        return f"an integer of {value.bit_length()} bits"
    brackets = _BRACKETS.get(type(value), "")
    if brackets and depth == 0:
        return f"{brackets[0]}…{brackets[1]}"
    if isinstance(value, dict) and brackets:
        parts = (
            f"{_repr(key, limit, depth - 1)}: {_repr(item, limit, depth - 1)}"
            for key, item in value.items()
        )
        return _joined(parts, brackets, limit)
    if isinstance(value, list | tuple) and brackets:
        text = _joined((_repr(v, limit, depth - 1) for v in value), brackets, limit)
        return f"{text[:-1]},)" if type(value) is tuple and len(value) == 1 else text
    try:
        return repr(value)
    except Exception:  # a repr of someone's own may do anything
        return f"a {type(value).__name__}"


def _joined(parts: Iterable[str], brackets: str, limit: int) -> str:
    text = brackets[0]
    for part in parts:
        text += (", " if len(text) > 1 else "") + part
        if len(text) > limit:
            break
    return text + brackets[1]
