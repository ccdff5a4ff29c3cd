# SPDX-License-Identifier: Apache-2.0
"""The text form of the configuration: medusa:HEADS[@revision][?key=value&…]."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from vllm_medusa.batch_table import TABLE_KEY
from vllm_medusa.errors import ConfigError
from vllm_medusa.reading import local_path
from vllm_medusa.wording import show

PREFIX = "medusa:"
FORM = "medusa:HEADS[@revision][?key=value&...]"

_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_INTEGER = re.compile(r"[0-9]{1,18}")
_NUMBER_KEYS = ("epsilon", "delta")
_INTEGER_KEYS = ("num_heads", "num_speculative_tokens", "draft_vocab")


def split_text(text: str) -> dict[str, Any]:
    """Return the fields of a configuration text; their values are not checked yet.

    HEADS, the revision and the values may be percent-encoded. An @ in HEADS starts
    the revision, unless a file or folder of that whole name exists.

    Raises:
        ConfigError: the text does not have the form, repeats a key, or is encoded
            wrongly.
    """
    if not isinstance(text, str) or not text.startswith(PREFIX):
        raise ConfigError(
            f"{show(text, 200)} does not start with {PREFIX!r}: give {FORM}"
        )
    name, question, query = text.removeprefix(PREFIX).partition("?")
    fields = _split_name(name)
    if not fields["heads"]:
        raise ConfigError(f"{show(text, 200)} names no heads: give {FORM}")
    if question and not query:
        raise ConfigError(
            f"{show(text, 200)} ends in '?': give key=value after it, or drop it"
        )
    for pair in query.split("&") if query else ():
        key, equals, value = pair.partition("=")
        if not key or not equals or not value:
            raise ConfigError(f"{show(pair)} in {show(text, 200)} must be key=value")
        if key in fields:
            raise ConfigError(f"{show(key)} is given twice in {show(text, 200)}")
        fields[key] = _read_value(key, _decode(value))
    return fields


def join_text(fields: Mapping[str, Any]) -> str:
    """Return the text form of `heads`, `revision` and the other given fields."""
    text = PREFIX + quote(fields["heads"], safe="/:~+,= ")
    if fields.get("revision") is not None:
        text += "@" + quote(fields["revision"], safe="/:+,=")
    pairs = [
        f"{key}={quote(_write_value(value), safe='/:[],~')}"
        for key, value in fields.items()
        if key not in ("heads", "revision")
    ]
    return text + ("?" + "&".join(pairs) if pairs else "")


def _split_name(name: str) -> dict[str, Any]:
    if "@" not in name or _exists(name):
        return {"heads": name if _exists(name) else _decode(name)}
    heads, _, revision = name.rpartition("@")
    if not revision:
        raise ConfigError(f"{show(name, 200)} has no revision after '@'")
    return {
        "heads": heads if _exists(heads) else _decode(heads),
        "revision": _decode(revision),
    }


def _exists(name: str) -> bool:
    try:
        return bool(name) and local_path(name).exists()
    except (OSError, ValueError):  # too long, or a NUL byte: no such file
        return False


def _decode(value: str) -> str:
    if _BROKEN_PERCENT.search(value):
        raise ConfigError(
            f"{show(value, 200)} has a '%' that encodes no character: write %25 for "
            "a plain %"
        )
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise ConfigError(f"{show(value, 200)} does not encode UTF-8 text") from None


def _read_value(key: str, value: str) -> Any:
    if key in _INTEGER_KEYS:
        if not _INTEGER.fullmatch(value):
            raise ConfigError(f"{key} must be a whole number, not {show(value)}")
        return int(value)
    if key == "delta" and value in ("none", "null"):
        return None
    if key in _NUMBER_KEYS:
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"{key} must be a number, not {show(value)}") from None
    if key == TABLE_KEY and value != "auto":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise ConfigError(
                f'{key} must be "auto", null or JSON such as [[1,1,8],[2,4,4]], not '
                f"{show(value)}"
            ) from None
    return value


def _write_value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"))
