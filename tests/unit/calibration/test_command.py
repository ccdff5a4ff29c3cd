# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa calibrate`: what is refused before an engine starts, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.calibration.test_result import RESULT
from vllm_medusa.calibration.plots import NAMES
from vllm_medusa.calibration.prompts import PROMPTS, calibration_prompts
from vllm_medusa.cli import calibrate
from vllm_medusa.cli.main import main
from vllm_medusa.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "-1"], "--temperature must be a number from 0 to 100"),
        (["--temperature", "nan"], "--temperature must be a number"),
        (["--margin", "inf"], "--margin must be a number from 0 on"),
        (["--nodes", "0", "4"], "--nodes must be numbers from 1 to"),
        (["--nodes", "100000"], "--nodes must be numbers from 1 to"),
        (["--batch-sizes", "0"], "--batch-sizes must be numbers from 1"),
        (["--max-tokens", "1"], "--max-tokens must be at least 2"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--by-task"], "8 of 8 prompts have no task"),
        (["--prompts", "none.txt"], "can't read the prompts"),
        (["--tree", "chain:9"], "only 4 heads"),
        (["--output", "pyproject.toml/x/c.json"], "cannot write into pyproject.toml/x"),
        (["--output", "docs"], "--output docs is a folder: give the name of a file"),
        (["--output", "9" * 999], "(File name too long): make room, or choose another"),
        (["--plots", "9" * 999], "(File name too long): make room, or choose another"),
        (["--plots", "pyproject.toml/x"], "cannot write into pyproject.toml/x"),
    ],
)
def test_refused(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setattr(calibrate, "_measure", None)  # no engine may start
    assert main(["calibrate", "default", "default", *words]) == 2
    assert message in capsys.readouterr().err


def test_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def measure(*arguments: Any) -> Any:
        seen.extend(arguments)
        return RESULT

    monkeypatch.setattr(calibrate, "_measure", measure)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a", "category": "x"}\n{"prompt": "b", "task": "y"}')
    output = tmp_path / "deep" / "calibration.json"
    words = ["calibrate", "default", "default", "--output", str(output)]
    words += ["--plots", str(tmp_path / "plots"), "--prompts", str(prompts)]
    assert main([*words, "--by-task", "--nodes", "4", "2", "--tree", "chain"]) == 0
    assert json.loads(output.read_text())["temperature"] == 0.7
    assert {path.name for path in (tmp_path / "plots").iterdir()} == set(NAMES)
    _, _, tree, options, asked = seen
    assert tree.num_nodes == 4
    assert (options.node_counts, options.by_task) == ((4, 2), True)
    assert [prompt.task for prompt in asked] == ["x", "y"]


def test_prompts(tmp_path: Path) -> None:
    assert len(calibration_prompts(None, by_task=False)) == len(PROMPTS)
    text = tmp_path / "prompts.txt"
    text.write_text("# held out\none\ntwo\n")
    prompts = calibration_prompts(text, by_task=False)
    assert [prompt.messages[0]["content"] for prompt in prompts] == ["one", "two"]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "a", "category": "x"}\n{"prompt": "b"}')
    assert [p.task for p in calibration_prompts(lines, by_task=False)] == ["x", None]
    with pytest.raises(ConfigError, match=r'1 of 2 prompts .* "category"'):
        calibration_prompts(lines, by_task=True)
