# SPDX-License-Identifier: Apache-2.0
"""Which errors are about the file that is written. What becomes of files when a disk
is full is in tests/robustness/test_full_disk.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_medusa.errors import OutputError
from vllm_medusa.files import atomic_path, writing


def test_what_was_to_be_read_is_not_what_is_written(tmp_path: Path) -> None:
    missing = tmp_path / "source" / "model.gguf"
    with (
        pytest.raises(FileNotFoundError, match=r"model\.gguf"),
        writing(tmp_path / "cache" / "model"),
    ):
        missing.read_bytes()


@pytest.mark.parametrize("name", ["file/heads.json", "file/folder/heads.json"])
def test_no_place_to_write(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(
            OutputError, match=r"cannot write .*heads\.json \(.*another place"
        ),
        atomic_path(tmp_path / name),
    ):
        pass
