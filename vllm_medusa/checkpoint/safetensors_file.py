# SPDX-License-Identifier: Apache-2.0
"""Files in the safetensors format, opened by their headers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vllm_medusa.checkpoint.tensor_info import TensorInfo
from vllm_medusa.errors import CheckpointError
from vllm_medusa.reading import open_regular

# dtype names of the header that heads may have.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
}
# A mixture of experts in one file has tens of thousands of tensors, of 150 bytes each.
_MAX_HEADER = 16 << 20


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
            self._check_header_length()
            self._file = safe_open(str(path), framework="pt", device="cpu")
            for name in self._file.keys():  # noqa: SIM118 (not a dict)
                part = self._file.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype())
                self.infos[name] = TensorInfo(tuple(part.get_shape()), dtype)
            self._stored_as = self._aliases()
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a readable safetensors file ({str(error)[:200]}); it "
                "may be truncated: fetch it again"
            ) from error
        self._kept = frozenset(self._stored_as.values())

    def _check_header_length(self) -> None:
        """The library would take 100 MB, and gigabytes of memory for them."""
        with open_regular(self.path) as stream:
            length = int.from_bytes(stream.read(8), "little")
        if length > _MAX_HEADER:
            raise SafetensorError(f"a header of {length} bytes")

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
        if kept not in self._kept:
            return self._file.get_tensor(kept)
        # Once for all its names: a small file must not fill the memory by aliases.
        if kept not in self._shared:
            self._shared[kept] = self._file.get_tensor(kept)
        return self._shared[kept]
