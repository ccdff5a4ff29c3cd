# SPDX-License-Identifier: Apache-2.0
"""docs/plan.md and its results are what the command says today."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from vllm_medusa.cli import main as cli
from vllm_medusa.planning.gpus import DEVICE_NAMES

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """The commands of the page's loops, one for each number of ranks."""
    found = []
    for ranks, body in re.findall(
        r"^for tp in ([\d ]+); do\n(.*?)^done", DOCS, flags=re.MULTILINE | re.DOTALL
    ):
        for tp in ranks.split():
            found += [shlex.split(line.replace("$tp", tp)) for line in body.split("\n")]
    return [command for command in found if command]


def test_every_result_has_its_command() -> None:
    named = sorted(Path(command[-1]).name for command in commands())
    folder = ROOT / "benchmarks" / "results" / "plan"
    assert named == sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("command", commands(), ids=lambda c: Path(c[-1]).stem)
def test_result(command: list[str], tmp_path: Path) -> None:
    program, *argv, path = command
    assert program == "vllm-medusa"
    output = tmp_path / "plan.json"
    cli.main([*argv, str(output)])
    now, then = (
        json.loads(file.read_text(encoding="utf-8")) for file in (output, ROOT / path)
    )
    assert now == then
    for side in ("plain", "medusa"):
        cache = now["memory"][side]["kv_cache"]
        assert not cache["fits"] or f" {cache['num_tokens']:,} |" in DOCS


def test_devices() -> None:
    (row,) = re.findall(r"^\| `--gpu` \| (.*?); or", DOCS, flags=re.MULTILINE)
    assert re.findall(r"`([^`]+)`", row) == [n for n in DEVICE_NAMES if n != "cpu"]
