# SPDX-License-Identifier: Apache-2.0
"""Mutations of JSON: as a value, and as a text that is no value or too much of one."""

from __future__ import annotations

import json
from random import Random
from typing import Any

_KEYS = (
    "format",
    "original_lm_head",
    "vocab_size",
    "hidden_size",
    "num_heads",
    "medusa_num_layers",
    "medusa_fc_bias",
    "model_type",
    "decoding_strategy",
    "base_model_name_or_path",
    "_name_or_path",
    "auto_map",
    "paths",
    "accuracy",
    "weight_map",
    "num_speculative_tokens_per_batch_size",
)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**400,
    -(10**4000),
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "vllm-medusa",
    "x" * 5000,
    "\x1b[2J\x07\n\r",
    "\ud800",
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    [],
    {},
    [[]],
    [[[[[]]]]],
    [None],
    [[0], [0]],
    [[-1]],
    [[64]],
    [[0, 0]],
    [[1, 1]],
    [[1, 2**40, 2**40]],
    [[1, 1, -1]],
    {"a": {"b": []}},
    {"AutoModel": "modeling.Evil"},
)


def mutate_json(content: bytes, random: Random) -> bytes:
    """Return a JSON text like `content`, changed as a value or as a text."""
    if random.random() < 0.6:
        value = json.loads(content)
        for _ in range(random.randint(1, 3)):
            value = _changed(value, random)
        return json.dumps(value).encode()
    return random.choice(_TEXTS)(content, random)


def _changed(value: Any, random: Random) -> Any:
    """Change one place of a value, deep inside most of the time."""
    if isinstance(value, dict) and value and random.random() < 0.8:
        key = random.choice(sorted(value))
        kind = random.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.3:
            return {**value, random.choice(_KEYS): random.choice(_VALUES)}
        return {**value, key: _changed(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        kind = random.random()
        if kind < 0.15:
            return value[:at] + value[at + 1 :]
        if kind < 0.3:
            return value + [value[at]] * random.choice((1, 3, 2000))
        return [*value[:at], _changed(value[at], random), *value[at + 1 :]]
    if type(value) in (int, float) and abs(value) < 1e300 and random.random() < 0.5:
        return random.choice((-value, value + 1, value * 1000, value / 3, str(value)))
    return random.choice(_VALUES)


def _deep(content: bytes, random: Random) -> bytes:
    depth = random.choice((100, 900, 5000, 500_000))
    opening, closing = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
    inner = opening * depth + b"1" + (closing * depth if random.random() < 0.7 else b"")
    return inner if random.random() < 0.5 else b'{"x": ' + inner + b"}"


def _wide(content: bytes, random: Random) -> bytes:
    unit = random.choice((b"[],", b"{},", b"0,", b'"ab",', b"[0],"))
    size = random.choice((1 << 16, 1 << 20, 5 << 20))
    return b'{"x": [' + unit * (size // len(unit)) + b"0]}"


def _many_keys(content: bytes, random: Random) -> bytes:
    count = random.choice((1000, 100_000))
    same = random.random() < 0.5
    pairs = (f'"{0 if same else number}": [{number}]' for number in range(count))
    return ("{" + ",".join(pairs) + "}").encode()


def _long_text(content: bytes, random: Random) -> bytes:
    key = random.choice(_KEYS)
    size = random.choice((1000, 500_000, 40 << 20))
    return f'{{"{key}": "{"y" * size}"}}'.encode()


def _long_number(content: bytes, random: Random) -> bytes:
    digits = "9" * random.choice((400, 4300, 4301, 1_000_000))
    form = random.choice(("{}", "-{}", "1e{}", "0.{}", "{}.{}"))
    key = random.choice(_KEYS)
    return f'{{"{key}": {form.format(digits, digits)}}}'.encode()


def _no_utf8(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content))
    return content[:at] + random.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80"))


def _other_encoding(content: bytes, random: Random) -> bytes:
    encoding = random.choice(("utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-7"))
    return content.decode().encode(encoding)


def _duplicate_keys(content: bytes, random: Random) -> bytes:
    inner = content.strip()[1:-1]
    return b"{" + inner + b"," + inner + b"}"


def _words(content: bytes, random: Random) -> bytes:
    words = (b"NaN", b"-Infinity", b"nul", b"'x'", b"0x10", b"01", b"+1", b"\0", b"//")
    return random.choice((b'{"vocab_size": ' + random.choice(words) + b"}", b"[1,]"))


_TEXTS = (
    _deep,
    _wide,
    _many_keys,
    _long_text,
    _long_number,
    _no_utf8,
    _other_encoding,
    _duplicate_keys,
    _words,
)
