# SPDX-License-Identifier: Apache-2.0
"""Two processes train together over gloo as one does alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.ranks import run_ranks
from tests.unit.train.medusa2 import tiny
from tests.unit.train.test_two_processes import free_port
from vllm_medusa.errors import QualityError
from vllm_medusa.train.medusa2.pipeline import train
from vllm_medusa.train.processes import Processes, started

pytestmark = pytest.mark.slow


def train_both(folder: Path, name: str, processes: Processes) -> dict[str, str]:
    """A run, and one that the guard stops; how each ended."""
    ends = {}
    for kind, rate, agreement in (("lora", 1e-3, 0.0), ("full", 0.1, 1.0)):
        options = tiny.options(
            folder / "base",
            (folder / "answers.jsonl",),
            folder / f"{name}-{kind}",
            kind=kind,
            dropout=0.0,
            min_agreement=agreement,
            max_perplexity_increase=1.0,
            backbone_learning_rate=rate,
            warmup=0.0,
        )
        try:
            train(options, tiny.Silence(), [], processes)
            ends[kind] = "trained"
        except QualityError:
            ends[kind] = "stopped"
        except SystemExit as end:
            ends[kind] = f"exit {end.code}"
    return ends


def train_as_rank(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    with started() as processes:
        ends = train_both(Path(folder), "two", processes)
    torch.save(ends, f"{folder}/{rank}.pt")


def test_two_processes_do_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.build_model(tmp_path / "base")
    tiny.write_answers(tmp_path / "answers.jsonl", tiny.written(base, 60))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    two: list[Any] = run_ranks(train_as_rank, tmp_path)
    one = train_both(tmp_path, "one", Processes())
    assert one == two[0] == {"lora": "trained", "full": "stopped"}
    assert two[1] == {"lora": "trained", "full": "exit 2"}
    for name in ("heads.pt", "joint.pt"):
        states = [
            torch.load(tmp_path / f"{count}-lora" / "work" / name, weights_only=True)
            for count in ("one", "two")
        ]
        assert states[0]["step"] == states[1]["step"] > 1
        assert states[0]["trained"].keys() == states[1]["trained"].keys()
        for key, value in states[0]["trained"].items():
            torch.testing.assert_close(
                states[1]["trained"][key], value, rtol=2e-3, atol=2e-4
            )
        for point, expected in zip(*(s["history"] for s in states), strict=True):
            assert point["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert (tmp_path / "two-lora" / "output" / "heads" / "model.safetensors").is_file()
    assert not (tmp_path / "two-full" / "output").exists()
