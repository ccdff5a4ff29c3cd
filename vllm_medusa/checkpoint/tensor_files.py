# SPDX-License-Identifier: Apache-2.0
"""Tensor files opened by their headers: no weights are read on opening."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from vllm_medusa.checkpoint.safetensors_file import SafetensorsFile
from vllm_medusa.checkpoint.tensor_info import TensorInfo
from vllm_medusa.checkpoint.torch_file import TorchFile
from vllm_medusa.errors import CheckpointError
from vllm_medusa.reading import open_regular

__all__ = [
    "SafetensorsFile",
    "TensorFile",
    "TensorInfo",
    "TorchFile",
    "open_tensor_file",
]


class TensorFile(Protocol):
    """A file of named tensors."""

    path: Path
    infos: dict[str, TensorInfo]

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, on the CPU, in its stored dtype."""
        ...


def open_tensor_file(path: Path) -> TensorFile:
    """Open one file by its suffix.

    Raises:
        CheckpointError: missing, damaged, or of an unknown kind.
    """
    try:
        open_regular(path).close()
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return TorchFile(path)
    raise CheckpointError(
        f"{path} is no tensor file: .safetensors, .pt, .pth or .bin is expected"
    )
