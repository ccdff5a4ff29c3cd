# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from vllm_medusa.cli.main import main


def test_where_prints_only_the_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("VLLM_MEDUSA_MODEL", str(tmp_path))
    assert main(["where", "model"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}\n"


def test_where_heads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heads = tmp_path / "assets" / "heads"
    heads.mkdir(parents=True)
    monkeypatch.setattr("vllm_medusa.__file__", str(tmp_path / "package/__init__.py"))
    assert main(["where", "heads"]) == 2
    assert "no heads for the default model" in capsys.readouterr().err
    (heads / "config.json").write_text("{}")
    assert main(["where", "heads"]) == 0
    assert capsys.readouterr().out == f"{heads}\n"
