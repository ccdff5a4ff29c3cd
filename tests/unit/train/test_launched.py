# SPDX-License-Identifier: Apache-2.0
"""The command as `accelerate launch` and `torchrun` start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.train import live, tiny_base
from tests.unit.train.test_two_processes import free_port
from vllm_medusa.train.answers import append_answers

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "accelerate": (
        # With --cpu it would start one process; without GPUs these two find none.
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes=2"),
        "--main_process_port={port}",
    ),
    "torchrun": (
        *("torch.distributed.run", "--nproc-per-node=2", "--master-port={port}"),
    ),
}


def launch(
    launcher: str, folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    words = [word.format(port=free_port()) for word in LAUNCHERS[launcher]]
    command = ["-m", "vllm_medusa.cli.main", "train", str(folder / "base")]
    return subprocess.run(
        [sys.executable, "-m", *words, *command, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("launched")
    tiny_base.save(made / "base")
    append_answers(made / "answers.jsonl", live.answered(tiny_base.llama(), 60))
    return made


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train(folder: Path, launcher: str) -> None:
    output = folder / launcher
    done = launch(
        launcher,
        folder,
        *("--output", str(output), "--answers", str(folder / "answers.jsonl")),
        *("--hidden-states=live", "--sequence-length=60", "--batch-size=240"),
        *("--held-out=0.2", "--num-heads=2", "--block=residual", "--draft-vocab=50"),
        *("--fsdp",) * (launcher == "torchrun"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"heads written to {output}") == 1
    recipe = json.loads((output / "recipe.json").read_text())
    assert recipe["compute"]["processes"] == 2
    assert recipe["compute"]["fsdp"] == (launcher == "torchrun")


def test_answers_are_not_made_there(folder: Path) -> None:
    done = launch("torchrun", folder, "--output", str(folder / "none"))
    assert done.returncode != 0
    assert done.stderr.count("error: ") >= 1
    assert "in one process with --answers-only first" in done.stderr
