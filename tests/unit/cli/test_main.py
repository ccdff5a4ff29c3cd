# SPDX-License-Identifier: Apache-2.0
"""The command as a whole: help, exit codes, what a user sees of an error."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from vllm_medusa import __version__
from vllm_medusa.cli import main as cli


def exit_code(*argv: str) -> object:
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    return exit_.value.code


def test_help_lists_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    listed = capsys.readouterr().out
    for module in cli.SUBCOMMANDS:
        assert f"\n    {cli.load_subcommand(module).NAME}" in listed


@pytest.mark.parametrize("module", cli.SUBCOMMANDS)
def test_every_subcommand_has_help(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = cli.load_subcommand(module).NAME
    assert exit_code(name, "--help") == 0
    assert f"usage: vllm-medusa {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("argv", [(), ("speculate",), ("where",), ("where", "moon")])
def test_wrong_usage_exits_with_2(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*argv) == 2
    assert "usage: vllm-medusa" in capsys.readouterr().err


def test_medusa_error_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_MEDUSA_MODEL", "/no/such/folder")
    assert cli.main(["where", "model"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: $VLLM_MEDUSA_MODEL is '/no/such/folder'")
    assert captured.err.count("\n") == 1


def raising(error: BaseException) -> object:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_interruption_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vllm_medusa.cli.where.run", raising(KeyboardInterrupt()))
    assert cli.main(["where", "model"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interruption_that_a_library_hides_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch's writer can't close a file in the midst of which it was interrupted."""

    def save(args: argparse.Namespace) -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr("vllm_medusa.cli.where.run", save)
    assert cli.main(["where", "model"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_medusa.cli.where.run", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["where", "model"])


def test_the_parser_imports_nothing_heavy() -> None:
    program = (
        "import sys; from vllm_medusa.cli.main import build_parser; build_parser(); "
        "print(*{'torch', 'vllm', 'transformers', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
