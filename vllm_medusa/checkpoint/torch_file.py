# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save(), read without unpickling anything."""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, cast

import torch

from vllm_medusa.checkpoint.tensor_info import TensorInfo
from vllm_medusa.checkpoint.torch_pickle import (
    MAX_BYTES,
    PickledTensor,
    PickleError,
    read_state_dict,
)
from vllm_medusa.errors import CheckpointError
from vllm_medusa.reading import open_regular
from vllm_medusa.wording import show

# Types of storages that heads may have; a backbone's others are never read.
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
}
# The names of tens of thousands of records.
_MAX_DIRECTORY = 4 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class TorchFile:
    """A file written by torch.save(), of which only what is asked for is read.

    A view that claims more elements than its storage holds (an expanded tensor) is
    refused.

    Raises:
        CheckpointError: truncated, corrupt, compressed, in the format of before
            PyTorch 1.6, or a pickle of anything but a dict of tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.infos: dict[str, TensorInfo] = {}
        self._records: dict[str, zipfile.ZipInfo] = {}
        self._storages: dict[str, bytearray] = {}
        self._pickled: dict[str, PickledTensor] = {}
        try:
            with open_regular(path) as stream:
                content = self._open(stream)
            self._pickled = read_state_dict(content)
        except PickleError as error:
            raise CheckpointError(
                f"{path} cannot be read as plain tensors: {error}"
            ) from None
        # NotImplementedError: a feature of zip archives that Python does not know.
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise CheckpointError(
                f"{path} is not a file of torch.save ({error}): it is truncated, or "
                "older than PyTorch 1.6; fetch it again or save it again"
            ) from error
        for name, tensor in self._pickled.items():
            self.infos[name] = TensorInfo(tensor.shape, self._dtype(name, tensor))

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, on the CPU, in its stored dtype."""
        tensor, dtype = self._pickled[name], self.infos[name].dtype
        if dtype is None:
            raise CheckpointError(
                f"{self.path}: tensor {show(name)} has no known dtype"
            )
        if 0 in tensor.shape:
            return torch.empty(tensor.shape, dtype=dtype)
        key = tensor.storage.key
        if key not in self._storages:
            self._storages[key] = self._read_storage(name)
        storage = self._storages[key]
        count = len(storage) // dtype.itemsize
        flat = torch.frombuffer(storage, dtype=dtype, count=count)
        view = flat.as_strided(tensor.shape, tensor.stride, tensor.offset)
        return view.contiguous()

    def _open(self, stream: io.BufferedReader) -> bytes:
        """List the records and return the pickle among them."""
        # ZipFile reads the directory at once, however long it says that it is.
        with zipfile.ZipFile(cast(IO[bytes], _Bounded(stream))) as archive:
            entries = archive.infolist()
        pickles = [e for e in entries if e.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise zipfile.BadZipFile("it holds no data.pkl")
        folder = pickles[0].filename.removesuffix("data.pkl")
        self._records = {e.filename.removeprefix(folder): e for e in entries}
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
            raise CheckpointError(
                f"{self.path} holds compressed entries, which torch.save never writes"
            )
        if pickles[0].file_size > MAX_BYTES:
            raise PickleError(f"it is larger than {MAX_BYTES} bytes")
        order = self._records.get("byteorder")
        if order is not None and _read(stream, order, 6) != b"little":
            raise CheckpointError(
                f"{self.path} was not saved on a little-endian machine: save it again "
                "on one"
            )
        return bytes(_read(stream, pickles[0], pickles[0].file_size))

    def _dtype(self, name: str, tensor: PickledTensor) -> torch.dtype | None:
        """The dtype if it is known, once the record has been found to hold it all."""
        if tensor.dtype is not None or tensor.storage.kind not in _DTYPES:
            return None
        dtype = _DTYPES[tensor.storage.kind]
        record = self._records.get(f"data/{tensor.storage.key}")
        last = tensor.offset + sum(
            (size - 1) * stride
            for size, stride in zip(tensor.shape, tensor.stride, strict=True)
        )
        held = 0 if record is None else record.file_size // dtype.itemsize
        if 0 in tensor.shape:
            return dtype
        if record is None or last >= held or math.prod(tensor.shape) > held:
            raise CheckpointError(
                f"{self.path}: tensor {show(name)} claims shape "
                f"{show(list(tensor.shape))}, more than the file holds"
            )
        return dtype

    def _read_storage(self, name: str) -> bytearray:
        record = self._records[f"data/{self._pickled[name].storage.key}"]
        try:
            with open_regular(self.path) as stream:
                return _read(stream, record, record.file_size)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: tensor {show(name)} cannot be read ({error}); the file "
                "is truncated or has changed: fetch it again"
            ) from error


def _read(stream: io.BufferedReader, record: zipfile.ZipInfo, size: int) -> bytearray:
    """Return the first bytes of a stored record."""
    end = os.fstat(stream.fileno()).st_size
    stream.seek(record.header_offset)
    header = stream.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"record {show(record.filename)} has no header")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = record.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    # Before anything is allocated.
    if start + size > end:
        raise zipfile.BadZipFile(f"record {show(record.filename)} ends behind the file")
    stream.seek(start)
    content = bytearray(size)
    if stream.readinto(content) != size:
        raise zipfile.BadZipFile(f"record {show(record.filename)} is cut off")
    return content


class _Bounded:
    """A file of which no more than `_MAX_DIRECTORY` bytes are read at once."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory takes {size} bytes")
        return self._stream.read(size)
