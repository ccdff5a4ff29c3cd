# SPDX-License-Identifier: Apache-2.0
"""The parts of scripts/setup_cpu.py that need no download."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = "scripts/setup_cpu.py"


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as it stands in a clone of its own."""
    (tmp_path / "scripts").mkdir()
    for name in (SCRIPT, "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    spec = importlib.util.spec_from_file_location("setup_cpu", tmp_path / SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return module


def forbid(*arguments: object, **options: object) -> None:
    raise AssertionError(f"must not be called: {arguments}")


def test_nothing_is_done_when_up_to_date(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    setup.PYTHON.parent.mkdir(parents=True)
    setup.PYTHON.touch()
    setup.STAMP.write_text(setup.fingerprint())
    monkeypatch.setattr(setup.subprocess, "run", forbid)
    assert setup.main() == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "file", ["requirements/cpu.txt", "requirements/vllm-cpu-name/pyproject.toml"]
)
def test_a_changed_list_is_noticed(setup: ModuleType, file: str) -> None:
    before = setup.fingerprint()
    path = setup.ROOT / file
    path.write_text(path.read_text() + "# changed\n")
    assert setup.fingerprint() != before


def test_tool_settings_do_not_matter(setup: ModuleType) -> None:
    before = setup.fingerprint()
    path = setup.ROOT / "pyproject.toml"
    path.write_text(path.read_text() + "\n[tool.other]\nwidth = 1\n")
    assert setup.fingerprint() == before


def test_a_failing_step_is_tried_again_and_shown(
    setup: ModuleType, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    program = (
        f"from pathlib import Path; p = Path({str(count)!r}); "
        "n = int(p.read_text()) + 1 if p.exists() else 1; p.write_text(str(n)); "
        "print('the reason'); exit(n < 3)"
    )
    command = [sys.executable, "-c", program]
    with pytest.raises(setup.SetupError, match="the reason"):
        setup.run(command, attempts=2)
    assert count.read_text() == "2"
    setup.run(command, attempts=2)
    assert count.read_text() == "3"


def test_failure_leaves_no_stamp(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail() -> None:
        raise setup.SetupError("pip\nno such package")

    monkeypatch.setattr(setup, "make_environment", lambda: None)
    monkeypatch.setattr(setup, "install_torch", fail)
    assert setup.main() == 1
    assert "error: setup failed at: pip\nno such package" in capsys.readouterr().err
    assert not setup.STAMP.exists()


def test_torch_comes_through_uv_where_pip_has_none(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(setup, "succeeds", lambda command: False)
    monkeypatch.setattr(setup, "run", lambda command, attempts: ran.append(command))
    setup.install_torch()
    assert ran[0][-1].endswith("uv.txt")
    assert ran[1][-3:] == ["--torch-backend", "cpu", "torch==2.13.0"]


def test_other_pythons_are_refused(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(setup.sys, "version_info", (3, 10, 4))
    assert setup.main() == 2
    assert "this is 3.10.4" in capsys.readouterr().err
