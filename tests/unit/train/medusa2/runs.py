# SPDX-License-Identifier: Apache-2.0
"""Whole runs on the tiny model, and what they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.unit.train.medusa2 import tiny
from vllm_medusa.train.medusa2.pipeline import train


def run(base: Path, answers: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    options = tiny.options(base, (answers,), folder, **changes)
    return train(options, tiny.Silence())


def command(base: Path, answers: Path, folder: Path, **changes: object) -> list[str]:
    values = {
        "stage": "medusa2",
        "output": folder / "out",
        "answers": answers,
        "held-out": 0.2,
        "num-heads": 2,
        "block": "residual",
        "projection": "shared",
        "draft-vocab": tiny.VOCAB_SIZE,
        "batch-size": 512,
        "sequence-length": 128,
        "mixed-precision": "no",
        "learning-rate": 2e-2,
        "heads-epochs": 2,
        "epochs": 0.5,
        "measure-every": 4,
        "tree-nodes": 5,
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    if "heads" in changes or changes.get("schedule") == "one-stage":
        del values["heads-epochs"], values["learning-rate"]
    if "heads" in changes:
        for name in ("num-heads", "block", "projection", "draft-vocab"):
            del values[name]
    words = ["train", str(base)]
    for name, value in values.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
