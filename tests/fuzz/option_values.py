# SPDX-License-Identifier: Apache-2.0
"""Texts and values that nobody would give on purpose."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

TREES = (
    "chain",
    "chain:4",
    "chain:0",
    "chain:1024",
    "chain:1025",
    "chain:999999999",
    "chain:" + "9" * 5000,
    "optimal:8",
    "optimal:10**12",
    "optimal:1000000000000",
    "1x7x6",
    "1000x1000x1000",
    "999999999x999999999",
    "x".join(["1"] * 5000),
    "x".join(["2"] * 60),
    "64x15",
    "x",
    "1x",
    "beam:5x3",
    "beam:1x1024",
    "beam:1000000000x1000000000",
    "beam:0x0",
    "beam:-1x2",
    "vicuna_7b_stage2",
    "[[0],[1],[0,0]]",
    "[[0],[0]]",
    "[[-1]]",
    "[[64]]",
    "[[0,0]]",
    "[[0.0]]",
    "[[true]]",
    "[[1e400]]",
    "[" * 20_000,
    "[" * 400 + "]" * 400,
    "[" + "[0]," * 50_000 + "[0]]",
    "[[" + "0," * 100_000 + "0]]",
    "[[9" + "9" * 5000 + "]]",
    "[[0],[1]],[]",
    "[]",
    "[[]]",
    "[NaN]",
    "tree.json",
    "folder/tree.json",
    "folder.json",
    "../../x.json",
    "/dev/zero",
    "/dev/stdin.json",
    "~nobody-of-that-name/x.json",
    "a\0b.json",
    "\x1b[2J/x.json",
    "x" * 5000 + ".json",
)
HEADS = (
    "heads",
    "default",
    "./none",
    "none",
    "a/b",
    "a/b/c",
    "../x",
    "~",
    "~nobody-of-that-name/heads",
    "https://example.com/heads",
    "file:///etc/passwd",
    "/dev/zero",
    "",
    " ",
    "a\nb",
    "a/b\n",
    "a\0b",
    "\ud800",
    "ａ/ｂ",
    "a" * 200,
    "a" * 100_000,
    "a@b",
    "a%",
    "a%ff",
    "a%00",
    "a?b",
    "--help",
    "-x",
)
_NUMBERS = (
    "0",
    "1",
    "3",
    "-1",
    "+3",
    "1.0",
    "1e3",
    "0x10",
    "٣",
    "1_000",
    " 1",
    "999999999999999999",
    "9" * 5000,
    "nan",
    "inf",
    "-inf",
    "none",
    "null",
    "true",
    "0.5",
    "1e-400",
    "",
)
_TABLES = (
    "auto",
    "null",
    "[[1,1,4]]",
    "[[1,2,3],[3,9,1]]",
    "[[1,1000000000000,3]]",
    "[[1,9" + "9" * 4000 + ",3]]",
    "[[1,1,-1]]",
    "[[2,1,1]]",
    "[[0,1,1]]",
    "[[1,1,1],[1,1,1]]",
    "[[1,1,true]]",
    "[[1,1.5,2]]",
    "[" + "[1,1,1]," * 20_000 + "[1,1,1]]",
    "[" * 5000,
    "[[1,1]]",
    "{}",
    "3",
    "NaN",
)
VALUES: dict[str, tuple[str, ...]] = {
    "tree": TREES,
    "revision": ("main", "v1", "../../x", "a b", "-x", "x" * 1000, "refs/pr/1", "a\n"),
    "num_heads": _NUMBERS,
    "num_speculative_tokens": _NUMBERS,
    "draft_vocab": _NUMBERS,
    "epsilon": _NUMBERS,
    "delta": _NUMBERS,
    "acceptance": ("exact", "typical", "rejection", "Exact", "lossy", "", "x" * 9999),
    "first_token": ("drawn", "greedy", "best", "0"),
    "attention": ("auto", "triton", "cascade", "flash", ""),
    "num_speculative_tokens_per_batch_size": _TABLES,
    "heads": HEADS,
    "trust_remote_code": ("true",),
    "model": HEADS,
    "__class__": ("x",),
    "x" * 10_000: ("1",),
}
KEYS = tuple(VALUES)


def _nested(depth: int, make: Callable[[Any], Any]) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = make(value)
    return value


class _Text(str):
    """A text that prints as it likes."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise RuntimeError("printed")


class _Number(float):
    """A number that is none."""

    def __repr__(self) -> str:
        raise RuntimeError("printed")


class _Thing:
    """Neither comparable nor printable."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("printed")


OBJECTS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    2**63,
    10**400,
    10**5000,
    -(10**5000),
    0.0,
    0.5,
    -0.5,
    1.0,
    1e308,
    float("nan"),
    float("inf"),
    1j,
    "",
    "exact",
    "typical",
    "none",
    "drawn",
    "x" * 1_000_000,
    "\x1b[2J\n",
    "\ud800",
    "a\0b",
    b"exact",
    bytearray(b"x"),
    [],
    (),
    {},
    set(),
    [[0], [1], [0, 0]],
    [[0], [0]],
    [[True]],
    [[-1]],
    [[10**5000]],
    [[1, 1, 4]],
    [[1, 10**12, 4]],
    [[1, 10**5000, 4]],
    [[1, 1, 10**5000]],
    [[1, 1, True]],
    [["1", "1", "1"]],
    [[0]] * 100_000,
    [[0] * 100_000],
    [None],
    {"a": [1]},
    {1: {2: {3: {4: {5: {}}}}}},
    _nested(100_000, lambda value: [value]),
    _nested(100_000, lambda value: {"a": value}),
    _nested(50_000, lambda value: (value,)),
    _Text("exact"),
    _Text("none"),
    _Number(0.5),
    _Thing(),
    object,
    print,
    Ellipsis,
    range(10**12),
)


def hostile_text(random: Random) -> str:
    """Return a text of characters that parsers trip over."""
    alphabet = (
        "medusa:?&=@%#/\\.[]{}x,0123456789-+ \t\n\r\0\x1b\x7fé٣ａ\u202e\ud800\U0001f600"
    )
    size = random.choice((0, 1, 5, 40, 400, 100_000))
    return "".join(random.choices(alphabet, k=size))


def mutate_text(text: str, random: Random) -> str:
    """Return `text` with a few characters changed, cut out, doubled or encoded."""
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(text) + 1)
        piece = text[at : at + random.randint(1, 8)]
        other = random.choice(
            (
                "",
                piece * 2,
                piece * 1000,
                hostile_text(random)[:40],
                "".join(f"%{byte:02x}" for byte in piece.encode(errors="replace")),
                "%",
                "%zz",
                "&",
                "?",
                "@",
                "=",
            )
        )
        text = text[:at] + other + text[at + len(piece) :]
    return text
