# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa train` ended by signals: it goes on, and ends as if nothing had been."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engine.support.models import VOCAB_SIZE, build_model
from tests.robustness.support.small_disk import contents
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.store import AnswerStore

HIDDEN, LENGTH = 96, 40
SECONDS = 240.0
# A checkpoint is written every 200 steps; this makes some 440 of a few ms.
OPTIONS = (
    "--num-heads=2",
    "--batch-size=128",
    "--epochs=21",
    "--tokens=1",
    "--held-out=0.2",
    "--draft-vocab=128",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model("llama", tmp_path_factory.mktemp("model"))


class Run:
    """One process of `vllm-medusa train` for a folder; no engine is needed, since the
    folder has enough answers."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.work = folder / "heads.work"
        command = ["train", str(model), f"--output={folder / 'heads'}", *OPTIONS]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vllm_medusa.cli.main", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < end, "the condition was never met"
            time.sleep(0.001)

    def is_saving(self) -> bool:
        return any(self.work.glob(".training.pt.*"))

    def has_saved(self) -> bool:
        return (self.work / "training.pt").exists()

    def end(self, sent: int | None = None) -> tuple[int, str]:
        """Signal the process; return its exit code and what it said."""
        if sent is not None:
            self.process.send_signal(sent)
        output, _ = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, output


def prepare(folder: Path) -> Path:
    """Make a work folder with answers and their hidden states."""
    generator = torch.Generator().manual_seed(0)
    store = AnswerStore(folder / "heads.work" / "answers")
    tokens = torch.randint(3, VOCAB_SIZE, (80, LENGTH), generator=generator).tolist()
    states = torch.randn(80, LENGTH, HIDDEN, generator=generator).bfloat16()
    answers = [Answer(f"prompt {n}", row, [1]) for n, row in enumerate(tokens)]
    store.add(answers, list(states))
    return folder


def result(folder: Path) -> dict[str, bytes]:
    """What a run is for; recipe.json also holds how long it took."""
    files = contents(folder / "heads")
    del files["recipe.json"], files["config.json"]
    return files


def test_signals_change_nothing(model: Path, tmp_path: Path) -> None:
    whole, cut = prepare(tmp_path / "whole"), prepare(tmp_path / "cut")
    code, output = Run(model, whole).end()
    assert code == 0, output

    run = Run(model, cut)
    run.wait_until(run.is_saving)
    # In the midst of the first checkpoint: nothing, or all of it, is there.
    assert run.end(signal.SIGKILL)[0] == -signal.SIGKILL

    run = Run(model, cut)
    run.wait_until(run.has_saved)
    code, output = run.end(signal.SIGINT)
    assert code == 130, output
    assert output.splitlines()[-1].endswith("interrupted")
    assert not list(run.work.rglob("*.partial")), "what was killed left something"

    run = Run(model, cut)
    run.wait_until(run.is_saving)
    code, output = run.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, output
    assert output.splitlines()[-1].endswith("terminated")
    assert not list(run.work.rglob("*.partial"))
    assert not (cut / "heads").exists()

    code, output = Run(model, cut).end()
    assert code == 0, output
    assert result(cut) == result(whole)


def test_two_runs_in_one_folder(model: Path, tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    first = Run(model, folder)
    try:
        first.wait_until(first.has_saved)
        # It must not come to its end meanwhile.
        first.process.send_signal(signal.SIGSTOP)
        code, output = Run(model, folder).end()
    finally:
        first.process.kill()
        first.process.communicate()
    assert code == 2, output
    assert f"another process is at work in {first.work}" in output
