# SPDX-License-Identifier: Apache-2.0
"""The source text of a function, and its hash, without importing its module.

`inspect.getsource` needs the imported function and tokenizes it; this reads
indentation instead, which takes microseconds and works on a vLLM that is only
unpacked. For the functions in `patches/` both give the same text (a test).
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Sequence

_DEFINITION = re.compile(r"( {4})?(?:async )?def (\w+)")
_CLASS = re.compile(r"class (\w+)")


def source_hash(source: str) -> str:
    """Return the SHA-256 of a dedented source text, in hexadecimal."""
    return hashlib.sha256(source.encode()).hexdigest()


def find_functions(lines: Sequence[str]) -> dict[str, int]:
    """Return where a file's functions begin: qualified name -> index of the first line.

    `lines` is a Python file. Names are `function` and `Class.method`; what is nested
    deeper is left out. Decorators belong to the function. Where one is defined more
    than once, the last definition counts, as in Python.
    """
    starts: dict[str, int] = {}
    owner: str | None = None
    for index, line in enumerate(lines):
        # A class ends where text stands in the first column, but for comments and the
        # bracket that closes its list of bases.
        if line[0] not in " \t\r\n)#":
            found = _CLASS.match(line)
            owner = found[1] if found else None
        elif owner is None or not line.startswith(("    def ", "    async def ")):
            continue
        found = _DEFINITION.match(line)
        if found is None:
            continue
        start, indent = index, found[1] or ""
        while start > 0 and lines[start - 1].startswith(f"{indent}@"):
            start -= 1
        starts[f"{owner}.{found[2]}" if owner else found[2]] = start
    return starts


def read_function(lines: Sequence[str], start: int) -> str:
    """Return the dedented source of the function that begins at `lines[start]`."""
    indent = _indentation(lines[start])
    end = start
    while not lines[end].lstrip().startswith(("def ", "async def ")):
        end += 1
    end += 1
    for index in range(end, len(lines)):
        text = lines[index].lstrip()
        if not text:
            continue
        # At the function's own indentation only the end of its signature may stand.
        if _indentation(lines[index]) > indent or text[0] in ")]}":
            end = index + 1
        elif text[0] != "#":
            break
    return textwrap.dedent("".join(lines[start:end]))


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())
