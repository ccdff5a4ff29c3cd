# SPDX-License-Identifier: Apache-2.0
"""What `vllm-medusa evaluate` refuses before it starts an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_medusa.cli import evaluate
from vllm_medusa.cli.main import main
from vllm_medusa.evaluation import measure


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object) -> None:
        raise AssertionError("an engine would be started")

    monkeypatch.setattr(measure, "start_engines", start)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["evaluate", *words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to measure: give --suite or --setting"),
        (("--suite", "header"), "unknown suite 'header'"),
        (("--setting", "a"), "must be NAME=OPTIONS"),
        (("--setting", "a=tree=x", "--suite", "heads"), "unknown tree"),
        (("--suite", "heads", "--model", "org/base"), "needs --heads"),
        (("--suite", "heads", "--per-category", "0"), "--per-category must be at"),
        (("--suite", "heads", "--prompts", "none.jsonl"), "can't read the prompts"),
        (
            ("--suite", "heads", "--prompts", "x", "--per-category", "1"),
            "--per-category is about MT-bench",
        ),
        (("--suite", "heads", "--repeats", "0"), "--repeats must be at least 1: 0"),
        (("--suite", "heads", "--max-tokens", "-1"), "--max-tokens must be at least"),
        (("--suite", "heads", "--heads", "/no/such/heads"), "/no/such/heads"),
        (("--suite", "heads", "--engines", "1"), "--engines must be at least 2"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, *words)


@pytest.mark.parametrize("name", ["", "file/x.json", "file/deep/x.json"])
def test_output_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").touch()
    line = refused(capsys, "--suite", "heads", "--output", str(tmp_path / name))
    assert "cannot write" in line


def test_two_settings_of_one_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--setting", "a=tree=chain:1", "--setting", "a=tree=chain:2")
    assert "two settings are called 'a'" in refused(capsys, *words)


def test_a_malformed_line_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hi"}\n{"prompt": 1}\n')
    line = refused(capsys, "--suite", "heads", "--prompts", str(prompts))
    assert "prompts.jsonl, line 2" in line


@pytest.mark.parametrize("package", ["matplotlib", "sacrebleu", "rouge_score"])
def test_a_missing_package_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    def find_spec(name: str) -> object | None:
        return None if name == package else object()

    monkeypatch.setattr(evaluate, "find_spec", find_spec)
    line = refused(capsys, "--suite", "heads")
    assert package.replace("_", "-") in line
    assert "pip install 'vllm-medusa[evaluate]'" in line
