# SPDX-License-Identifier: Apache-2.0
"""Reading functions out of source files by indentation."""

from __future__ import annotations

import hashlib
import textwrap

import pytest

from vllm_medusa.function_source import find_functions, read_function, source_hash

LINES = textwrap.dedent(
    '''\
    import functools

    @functools.cache
    async def top(
        x,
    ) -> int:
        """Docs.

        More."""
        return x  # last

    class Box(
        dict,
    ):  # a comment
        size = 1

        def get(self):
            return (
                1
            )

    # between methods, in the first column
        @staticmethod
        @functools.cache
        def make(kind="(",
                 other=")"):
            def inner():
                return 0
            # at the end of the body

        def get(self):
            return 2

    class Other:
        def get(self): return 3

    def last():
        pass
    '''
).splitlines(keepends=True)


def source(name: str) -> str:
    return read_function(LINES, find_functions(LINES)[name])


def test_names() -> None:
    names = ["top", "Box.get", "Box.make", "Other.get", "last"]
    assert list(find_functions(LINES)) == names


def test_decorators_and_signature() -> None:
    assert source("top").startswith("@functools.cache\nasync def top(\n    x,\n) ->")
    assert source("top").endswith("return x  # last\n")


def test_method_is_dedented_with_its_decorators_and_inner_functions() -> None:
    assert source("Box.make") == (
        '@staticmethod\n@functools.cache\ndef make(kind="(",\n         other=")"):\n'
        "    def inner():\n        return 0\n    # at the end of the body\n"
    )


def test_the_last_definition_counts() -> None:
    assert source("Box.get") == "def get(self):\n    return 2\n"


def test_one_line_function_and_end_of_file() -> None:
    assert source("Other.get") == "def get(self): return 3\n"
    assert source("last") == "def last():\n    pass\n"


@pytest.mark.parametrize(
    "changed",
    [
        "def last():\n    pass\n    pass\n",
        "def last():\n    pass  # why\n",
        "@staticmethod\ndef last():\n    pass\n",
    ],
)
def test_any_change_of_the_text_changes_the_hash(changed: str) -> None:
    assert source_hash(changed) != source_hash(source("last"))


def test_hash_is_sha256() -> None:
    assert source_hash("é") == hashlib.sha256("é".encode()).hexdigest()
