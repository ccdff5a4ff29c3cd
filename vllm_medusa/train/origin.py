# SPDX-License-Identifier: Apache-2.0
"""Where the answers of a store come from: the model, and those that were included."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_medusa.errors import ConfigError
from vllm_medusa.json_file import read_json, write_json
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.store import AnswerStore

FILE = "origin.json"
"""Beside the answers: the model's name, number and digest of the included answers."""


def include(store: AnswerStore, included: Sequence[Answer], model: str) -> None:
    """Begin a store with answers made earlier, or see that it began with them.

    An interruption leaves some of them; the rest is added. A store that does not say
    where it comes from is taken if it begins with them.

    Args:
        store: empty, or of an earlier run.
        included: the answers of all files.
        model: folder or Hugging Face id of the base model.

    Raises:
        ConfigError: the store is of another model, or began with other answers.
        OutputError: there is no room to write.
    """
    origin = {
        "model": str(Path(model).resolve()) if Path(model).is_dir() else model,
        "included": len(included),
        "sha256": _digest(included),
    }
    path = store.folder / FILE
    if path.is_file():
        _check(path, origin)
    stored = store.answers[: len(included)]
    if stored != list(included[: len(stored)]):
        raise ConfigError(
            f"{store.folder} holds other answers than --answers names: choose another "
            "--work, or delete the folder"
        )
    if not path.is_file():
        # Before the answers, so that an interrupted run knows how many they are.
        write_json(path, origin)
    store.add(included[len(stored) :])


def _check(path: Path, origin: dict[str, Any]) -> None:
    known = read_json(path, "answers' origin", ConfigError)
    if not isinstance(known, dict) or known.keys() != origin.keys():
        raise ConfigError(f"{path} is damaged: delete it")
    if known["model"] != origin["model"]:
        raise ConfigError(
            f"{path.parent} holds answers of the model {known['model']}, not of "
            f"{origin['model']}: choose another --work, or delete the folder"
        )
    if known != origin:
        raise ConfigError(
            f"{path.parent} began with {known['included']} answers of --answers, other "
            f"than the {origin['included']} that are given now: give the same files, "
            "choose another --work, or delete the folder"
        )


def _digest(answers: Sequence[Answer]) -> str:
    digest = hashlib.sha256()
    for answer in answers:
        digest.update(repr(answer).encode())
    return digest.hexdigest()
