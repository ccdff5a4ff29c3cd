# SPDX-License-Identifier: Apache-2.0
"""The running state of a training run on disk."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from vllm_medusa.errors import ConfigError
from vllm_medusa.files import atomic_path


def write_state(path: Path, fingerprint: str, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers, texts, lists and dicts of these.

    Args:
        path: where to.
        fingerprint: of what must not change between a run and its continuation.
        state: what to go on from.

    Raises:
        OutputError: it can't be written; what was there stays.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        # To a path PyTorch would write without telling why it can't.
        torch.save({"fingerprint": fingerprint, **state}, stream)


def read_state(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read a state, tensors on the CPU; None if there is no file.

    Raises:
        ConfigError: it is damaged, or of a run with another fingerprint.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["fingerprint"]
    except (OSError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}): delete it to start over"
        ) from None
    if found != fingerprint:
        raise ConfigError(
            f"{path} is of a run with other options or other data or another model: "
            "give the same ones to go on, or delete it to start over"
        )
    return state
