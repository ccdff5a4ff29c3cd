# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it: real model, real heads, two engines, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_medusa import default_model
from vllm_medusa.errors import CheckpointError

pytestmark = pytest.mark.demo


def test_demo(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is the capital of France?\nCount from one to ten.\n")
    result = tmp_path / "demo.json"
    command = [sys.executable, "-m", "vllm_medusa.cli.main", "demo"]
    options = ["--rounds", "1", "--max-tokens", "16"]
    files = ["--prompts", str(prompts), "--json", str(result)]
    done = subprocess.run(
        [*command, *options, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("identical: yes") == 3

    content = json.loads(result.read_text())
    france, count = content["prompts"]
    assert france["text"] == france["medusa_text"] == "The capital of France is Paris."
    assert count["tokens"] == 16
    assert content["identical"] is True
    # The tree was really used: some drafts were accepted, so steps were saved.
    assert content["tokens_per_step"] > 1.0


def test_the_default_model_predicts_text(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = default_model.model_path()
    default_model._check(folder)
    monkeypatch.setattr(default_model, "CHECK_LOSS", default_model.CHECK_LOSS - 0.1)
    with pytest.raises(CheckpointError, match="the check text"):
        default_model._check(folder)
