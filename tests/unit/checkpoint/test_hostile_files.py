# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile tensor files are refused, and none of their code runs."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from tests.unit.checkpoint.support import canonical_tensors, refused, write


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("file", ["model.safetensors", "model.pt"])
def test_truncated_files(tmp_path, file, part):
    write(tmp_path, file, canonical_tensors())
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: int(len(whole) * part)])
    refused(tmp_path, "truncated")


def safetensors_bytes(header: dict, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"not a safetensors file at all",
        struct.pack("<Q", 2**60) + b"{}",
        safetensors_bytes(
            {
                "blocks.0.layers.0.weight": {
                    "dtype": "F32",
                    "shape": [2**20, 2**20],
                    "data_offsets": [0, 2**42],
                }
            },
            b"\0" * 16,
        ),
        safetensors_bytes(
            {
                "blocks.0.layers.0.weight": {
                    "dtype": "F32",
                    "shape": [2**32, 2**32],
                    "data_offsets": [0, 16],
                }
            },
            b"\0" * 16,
        ),
    ],
    ids=["text", "huge header", "beyond the file", "shape overflow"],
)
def test_hostile_safetensors_headers(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(tmp_path, "not a readable safetensors file")


def test_expanded_tensor_of_a_torch_file(tmp_path):
    tensors = {"blocks.0.layers.0.weight": torch.zeros(1).expand(2**20, 2**20)}
    write(tmp_path, "model.pt", tensors)
    refused(tmp_path, r"claims shape \[1048576, 1048576\]")


def test_compressed_torch_file(tmp_path):
    write(tmp_path, "stored.pt", canonical_tensors())
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    refused(tmp_path / "model.pt", "compressed")


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_no_code(tmp_path):
    mark = tmp_path / "code ran"
    content = canonical_tensors() | {"blocks.0.layers.0.bias": Hostile(mark)}
    torch.save(content, tmp_path / "model.pt")
    refused(tmp_path, "would run code, which is never done")
    assert not mark.exists()
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert mark.exists()  # so the file was hostile indeed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds a list"),
        ({"blocks": {"0": torch.ones(1)}}, "'blocks': dict"),
        ({3: torch.ones(1)}, "3: Tensor"),
    ],
)
def test_torch_files_of_something_else(tmp_path, content, message):
    torch.save(content, tmp_path / "model.pt")
    refused(tmp_path, message)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(2**20, 2**20, device="meta"),
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.eye(4).to_sparse_csr(),
    ],
    ids=["meta", "coo", "csr"],
)
def test_tensors_without_their_data(tmp_path, make):
    torch.save({"blocks.0.layers.0.weight": make()}, tmp_path / "model.pt")
    refused(tmp_path, r"'blocks.0.layers.0.weight' is .* a plain \(strided\) tensor")
