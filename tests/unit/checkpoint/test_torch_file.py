# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save are read as torch.load reads them, without unpickling."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

from vllm_medusa.checkpoint.torch_file import TorchFile


def _linear() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.arange(12.0).view(3, 4)},
        {"a": torch.arange(12.0).view(3, 4).t()},
        {"a": torch.arange(12.0)[4:8]},
        {"a": torch.arange(12.0).view(3, 4)[1:, ::2]},
        {"a": torch.tensor(3.0), "b": torch.empty(0, 4)},
        {"a": torch.nn.Parameter(torch.ones(2, 2))},
        {f"{dtype}": torch.arange(6).to(dtype) for dtype in (torch.int64, torch.int16)},
        {
            f"{dtype}": torch.arange(6).to(dtype)
            for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        },
        OrderedDict(a=torch.ones(1)),
        _linear().state_dict(),
        {},
    ],
)
def test_the_tensors_are_those_of_torch(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    file = TorchFile(tmp_path / "x.pt")
    expected = torch.load(tmp_path / "x.pt", weights_only=True)
    assert list(file.infos) == list(expected)
    for name, tensor in expected.items():
        assert file.infos[name].shape == tuple(tensor.shape)
        assert file.infos[name].dtype == tensor.dtype
        assert torch.equal(file.read(name), tensor)
        assert file.read(name).is_contiguous()


def test_tensors_that_share_their_storage(tmp_path):
    weight = torch.arange(8.0)
    torch.save({"a": weight, "b": weight, "c": weight[2:]}, tmp_path / "x.pt")
    file = TorchFile(tmp_path / "x.pt")
    assert torch.equal(file.read("b"), weight)
    assert torch.equal(file.read("c"), weight[2:])


def test_dtypes_that_no_heads_have_stand_beside_them(tmp_path):
    others = (
        torch.float8_e4m3fn,
        torch.int8,
        torch.bool,
        torch.complex64,
        torch.uint16,
    )
    content = {f"{dtype}": torch.ones(3).to(dtype) for dtype in others}
    torch.save({"a": torch.ones(2)} | content, tmp_path / "x.pt")
    file = TorchFile(tmp_path / "x.pt")
    assert [file.infos[str(dtype)].dtype for dtype in others] == [None] * len(others)
    assert torch.equal(file.read("a"), torch.ones(2))


def test_a_file_that_is_replaced_or_cut_short_meanwhile(tmp_path):
    torch.save({"a": torch.ones(100)}, tmp_path / "x.pt")
    file = TorchFile(tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content[:200])
    with pytest.raises(
        ValueError, match=r"'a' cannot be read .* changed: fetch it again"
    ):
        file.read("a")
    (tmp_path / "x.pt").unlink()
    with pytest.raises(ValueError, match="'a' cannot be read"):
        file.read("a")
