# SPDX-License-Identifier: Apache-2.0
"""Mutations that know nothing of what they mutate."""

from __future__ import annotations

from random import Random

# Where parsers of binary formats go wrong: signs, lengths, ends of the range.
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
_WIDE = (2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """Return `content` with one to four changes of random kinds."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        content = random.choice(_KINDS)(content, random)
    return content


def _place(content: bytes, random: Random) -> int:
    """Any place, those at both ends more often: there the headers are."""
    if not content:
        return 0
    near = min(len(content), 600)
    return random.choice(
        (
            random.randrange(len(content)),
            random.randrange(near),
            len(content) - 1 - random.randrange(near),
        )
    )


def _truncate(content: bytes, random: Random) -> bytes:
    return content[: _place(content, random)]


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 16))):
        if changed:
            changed[_place(content, random)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _set_byte(content: bytes, random: Random) -> bytes:
    at = _place(content, random)
    return content[:at] + bytes([random.randrange(256)]) + content[at + 1 :]


def _set_number(content: bytes, random: Random) -> bytes:
    width = random.choice((1, 2, 4, 8))
    numbers = _NUMBERS + (_WIDE if width == 8 else ())
    number = random.choice(numbers) % (1 << 8 * width)
    at = _place(content, random)
    return content[:at] + number.to_bytes(width, "little") + content[at + width :]


def _delete(content: bytes, random: Random) -> bytes:
    at = _place(content, random)
    return content[:at] + content[at + random.randint(1, 64) :]


def _insert(content: bytes, random: Random) -> bytes:
    at = _place(content, random)
    return content[:at] + random.randbytes(random.randint(1, 64)) + content[at:]


def _repeat(content: bytes, random: Random) -> bytes:
    at = _place(content, random)
    piece = content[at : at + random.randint(1, 256)]
    return content[:at] + piece * random.randint(2, 8) + content[at + len(piece) :]


def _swap(content: bytes, random: Random) -> bytes:
    first, second = sorted((_place(content, random), _place(content, random)))
    size = random.randint(1, 64)
    if first + size > second:
        return content
    one, other = content[first : first + size], content[second : second + size]
    between = content[first + size : second]
    return content[:first] + other + between + one + content[second + size :]


def _zero(content: bytes, random: Random) -> bytes:
    at = _place(content, random)
    size = min(random.randint(1, 512), len(content) - at)
    return content[:at] + bytes(size) + content[at + size :]


def _append(content: bytes, random: Random) -> bytes:
    return content + random.choice((b"\0" * 100, content, random.randbytes(30)))


def _nothing_left(content: bytes, random: Random) -> bytes:
    return random.choice((b"", b"\0", b"PK", b"{}", random.randbytes(200)))


_KINDS = (
    _truncate,
    _truncate,
    _flip,
    _flip,
    _flip,
    _set_byte,
    _set_number,
    _set_number,
    _delete,
    _insert,
    _repeat,
    _swap,
    _zero,
    _append,
    _nothing_left,
)
