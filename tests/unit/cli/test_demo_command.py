# SPDX-License-Identifier: Apache-2.0
"""The demo's command line, with the measurement itself replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_medusa.cli.main import main
from vllm_medusa.demo.compare import Setting
from vllm_medusa.demo.report import PromptResult, Report, Sample

PAIR = ("--model", "base", "--heads", "heads")


def fake_compare(monkeypatch: pytest.MonkeyPatch, medusa_text: str) -> list[Setting]:
    """Replace the engines; return the list that receives the settings asked for."""
    asked: list[Setting] = []

    def compare(setting: Setting, progress: Callable[[str], None]) -> Report:
        asked.append(setting)
        progress("working")
        plain = Sample("[Paris]", [1, 2, 3, 4], 2.0, 0, 0)
        token_ids = [ord(letter) for letter in medusa_text]
        if medusa_text == plain.text:
            token_ids = plain.token_ids
        medusa = Sample(medusa_text, token_ids, 1.0, 2, 2)
        return Report(
            tuple(
                PromptResult(prompt, (plain,), (medusa,)) for prompt in setting.prompts
            )
        )

    monkeypatch.setattr("vllm_medusa.demo.compare.compare", compare)
    return asked


def test_identical_texts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = fake_compare(monkeypatch, "[Paris]")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# questions\n\nCapital of France?\n  And of Italy?\n")
    result = tmp_path / "out" / "demo.json"
    argv = ["--prompts", str(prompts), "--json", str(result), "--max-tokens", "9"]
    assert main(["demo", *PAIR, *argv]) == 0

    (setting,) = asked
    assert setting.prompts == ("Capital of France?", "And of Italy?")
    assert (setting.model, setting.heads, setting.max_tokens) == ("base", "heads", 9)
    shown = capsys.readouterr().out
    assert shown.count("identical: yes") == 3  # each prompt and the sum
    assert "[Paris]" in shown  # brackets are text, not markup
    assert "tokens per step 2.00" in shown
    content = json.loads(result.read_text())
    assert content["identical"] is True
    assert content["speedup"] == pytest.approx(2.0)
    assert content["machine"]["versions"]["vllm-medusa"]
    first = content["prompts"][0]
    assert first["plain_tokens_per_second"] == pytest.approx(2.0)
    assert first["medusa_tokens_per_second"] == pytest.approx(4.0)


def test_a_different_text_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_compare(monkeypatch, "Rome")
    assert main(["demo", *PAIR]) == 1
    shown = capsys.readouterr().out
    assert "identical: no" in shown
    assert "with Medusa:\nRome" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--model", "base"), "--model base needs --heads"),
        ((*PAIR, "--max-tokens", "0"), "max_tokens must be at least 1, got 0"),
        ((*PAIR, "--rounds", "-1"), "rounds must be at least 1, got -1"),
        ((*PAIR, "--prompts", "/no/such/file"), "can't read the prompts"),
        ((*PAIR, "--prompts", "/dev/null"), "/dev/null holds no prompt"),
    ],
)
def test_bad_arguments(
    argv: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = fake_compare(monkeypatch, "Paris")
    assert main(["demo", *argv]) == 2
    assert message in capsys.readouterr().err
    assert asked == []
