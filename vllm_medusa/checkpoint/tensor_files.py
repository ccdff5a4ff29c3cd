# SPDX-License-Identifier: Apache-2.0
"""Tensor files opened by their headers: nothing is read or allocated on opening."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from vllm_medusa.errors import CheckpointError

# dtype names of the safetensors header that heads may have.
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor; dtype None for one we don't know."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


class TensorFile(Protocol):
    """A file of named tensors."""

    path: Path
    infos: dict[str, TensorInfo]

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, on the CPU, in its stored dtype."""
        ...


class SafetensorsFile:
    """A .safetensors file.

    The library checks the header against itself and the file's size on opening
    (offsets without gaps, bytes = shape x dtype, nothing beyond the end), so a
    hostile shape is refused before anything is allocated.

    Raises:
        CheckpointError: truncated, corrupt, or not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.infos: dict[str, TensorInfo] = {}
        self._shared: dict[str, torch.Tensor] = {}
        try:
            self._file = safe_open(str(path), framework="pt", device="cpu")
            for name in self._file.keys():  # noqa: SIM118 (not a dict)
                part = self._file.get_slice(name)
                dtype = _SAFETENSORS_DTYPES.get(part.get_dtype())
                self.infos[name] = TensorInfo(tuple(part.get_shape()), dtype)
            self._stored_as = self._aliases()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a readable safetensors file ({error}); it may be "
                "truncated: fetch it again"
            ) from error

    def _aliases(self) -> dict[str, str]:
        """Names that share another's weights and were left out on saving.

        safetensors' save_model() notes them in the header's metadata. All layers of
        a reference head share one weight by mistake (FasterDecoding/Medusa PR #133).
        """
        aliases = {}
        for name, kept in (self._file.metadata() or {}).items():
            if kept in self.infos and name not in self.infos:
                aliases[name] = kept
        self.infos |= {name: self.infos[kept] for name, kept in aliases.items()}
        return aliases

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, on the CPU, in its stored dtype."""
        kept = self._stored_as.get(name, name)
        if kept not in self._stored_as.values():
            return self._file.get_tensor(kept)
        # Once for all its names: a small file must not fill the memory by aliases.
        if kept not in self._shared:
            self._shared[kept] = self._file.get_tensor(kept)
        return self._shared[kept]


class TorchFile:
    """A file written by torch.save(), read without running any of its code.

    The file is memory-mapped; a view that claims more elements than its storage
    holds (an expanded tensor) is refused.

    Raises:
        CheckpointError: truncated, corrupt, compressed, in the format of before
            PyTorch 1.6, or a pickle of anything but a dict of tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = _load_state_dict(path)
        self.infos = {
            name: TensorInfo(tuple(tensor.shape), tensor.dtype)
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, on the CPU, in its stored dtype."""
        return self._tensors[name].contiguous()


def _load_state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(
                entry.compress_type != zipfile.ZIP_STORED
                for entry in archive.infolist()
            )
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(
            f"{path} is not a file of torch.save ({error}): it is truncated, or "
            "older than PyTorch 1.6; fetch it again or save it again"
        ) from error
    if packed:
        raise CheckpointError(
            f"{path} holds compressed entries, which torch.save never writes"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as plain tensors: it is damaged, or a pickle "
            f"that would run code, which is never done ({reason})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a dict of tensors"
        )
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{path} holds {name!r}: {type(tensor).__name__}; a dict of names "
                "to tensors is expected"
            )
        # Sparse tensors and those of the meta device have a shape without the data.
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{path}: tensor {name!r} is {tensor.layout} on {tensor.device}; a "
                "plain (strided) tensor is expected: save tensor.to_dense().cpu()"
            )
        size = math.prod(tensor.shape) * tensor.element_size()
        if size > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: tensor {name!r} claims shape {list(tensor.shape)}, more "
                "than the file holds"
            )
    return content


def open_tensor_file(path: Path) -> TensorFile:
    """Open one file by its suffix.

    Raises:
        CheckpointError: missing, damaged, or of an unknown kind.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return TorchFile(path)
    raise CheckpointError(
        f"{path} is no tensor file: .safetensors, .pt, .pth or .bin is expected"
    )
