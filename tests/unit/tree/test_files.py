# SPDX-License-Identifier: Apache-2.0
"""Trees from files, good and hostile."""

from __future__ import annotations

import os

import pytest

from vllm_medusa.errors import ConfigError, TreeError
from vllm_medusa.json_file import MAX_BYTES, read_json
from vllm_medusa.tree import from_file, published


@pytest.mark.parametrize(
    "content",
    ["[[0], [1], [0, 0]]", '{"source": "x", "paths": [[0], [1], [0, 0]]}'],
)
def test_reads_a_list_or_an_object(tmp_path, content):
    path = tmp_path / "tree.json"
    path.write_text(content)
    assert from_file(path).paths == ((0,), (1,), (0, 0))


def test_a_published_tree_survives_the_file(tmp_path):
    tree = published("zephyr_stage2")
    path = tmp_path / "tree.json"
    path.write_text(str([list(p) for p in tree.paths]))
    assert from_file(str(path)) == tree


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"[[0], [1", "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[" + b" " * MAX_BYTES + b"[0]]", f"larger than {MAX_BYTES} bytes"),
        (b"[[" + b"9" * 6000 + b"]]", "tree.json"),
        (b"{}", 'lacks the key "paths"'),
        (b'{"paths": 5}', "a tree is a list of paths .* not int"),
        (b'"chain"', "not str"),
        (b"null", "not NoneType"),
        (b"[]", "at least one node"),
        (b"[[0], [0.5]]", "holds 0.5"),
        (b"[[NaN]]", "holds nan"),
        (b'[["0"]]', "holds '0'"),
        (b"[[0], [[0]]]", r"holds \[0\]"),
        (b"[[0], [1, 0]]", "has a gap"),
    ],
)
def test_refuses_content(tmp_path, content, message):
    path = tmp_path / "tree.json"
    path.write_bytes(content)
    with pytest.raises(TreeError, match=message) as caught:
        from_file(path)
    assert str(path) in str(caught.value)


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(TreeError, match=r"none\.json does not exist"):
        from_file(tmp_path / "none.json")


def test_refuses_a_folder(tmp_path):
    with pytest.raises(TreeError, match="not a regular file"):
        from_file(tmp_path)


def test_refuses_a_pipe_without_waiting_for_it(tmp_path):
    path = tmp_path / "tree.json"
    os.mkfifo(path)
    with pytest.raises(TreeError, match="not a regular file"):
        from_file(path)


def test_refuses_a_name_that_no_file_can_have():
    with pytest.raises(TreeError, match=r"'a\\x00b.json' cannot be read"):
        from_file("a\0b.json")


def test_other_readers_choose_their_error(tmp_path):
    with pytest.raises(ConfigError, match=r"batch table file .* does not exist"):
        read_json(tmp_path / "none.json", "batch table", ConfigError)
