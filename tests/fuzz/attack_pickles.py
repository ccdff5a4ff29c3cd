# SPDX-License-Identifier: Apache-2.0
"""Pickles that would run code, fill the memory or never end."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.attacks import Scene, attack
from tests.unit.checkpoint.support import canonical_tensors, write

_FIRST = "blocks.0.layers.0.weight"
_START = b"\x80\x02}"  # protocol 2, an empty dict


class _Call:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = (function, arguments)

    def __reduce__(self) -> Any:
        return self.called


def replace_pickle(folder: Path, content: bytes) -> None:
    """Write model.pt, valid but for its pickle."""
    write(folder, "whole.pt", canonical_tensors())
    with (
        zipfile.ZipFile(folder / "whole.pt") as whole,
        zipfile.ZipFile(folder / "model.pt", "w") as changed,
    ):
        for name in whole.namelist():
            is_pickle = name.endswith("data.pkl")
            changed.writestr(name, content if is_pickle else whole.read(name))
    (folder / "whole.pt").unlink()


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _long(number: int) -> bytes:
    content = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


@attack(refused=True)
def calls_of_functions(scene: Scene) -> None:
    canary = scene.canary
    call = scene.random.choice(
        (
            _Call(os.system, f"touch '{canary}'"),
            _Call(os.mkdir, str(canary)),
            _Call(builtins.eval, f"open({str(canary)!r}, 'w')"),
            _Call(builtins.exec, f"open({str(canary)!r}, 'w')"),
            _Call(builtins.open, str(canary), "w"),
            _Call(subprocess.check_call, ["touch", str(canary)]),
            _Call(getattr, _Call(__import__, "os"), "getcwd"),
            _Call(torch.load, str(canary)),
            _Call(pickle.loads, b"N."),
        )
    )
    content = {**canonical_tensors(), _FIRST: call}
    place = scene.random.choice((content, call, {"": content}, [call]))
    if scene.random.random() < 0.3:
        (scene.folder / "model.pt").write_bytes(pickle.dumps(place, protocol=2))
    else:
        torch.save(place, scene.folder / "model.pt")


@attack(refused=True)
def globals_of_torch(scene: Scene) -> None:
    """What torch's own restricted unpickler would call."""
    huge = _long(6 << 30)
    pickled = scene.random.choice(
        (
            _global("builtins bytearray") + huge + b"\x85R",
            _global("torch Tensor") + huge + b"\x85R",
            _global("torch FloatTensor") + huge + b"\x85R",
            _global("torch DoubleTensor") + huge + b"\x85\x81",
            _global("torch.nn.parameter Parameter") + b")\x81",
            _global("torch Size") + b"]" + huge + b"a\x85R",
            _global("collections Counter") + _text("x" * 100) + b"\x85R",
            _global("_codecs encode") + _text("x") + _text("rot13") + b"\x86R",
            _global("torch._utils _rebuild_wrapper_subclass") + b")R",
            _global("torch.storage UntypedStorage") + huge + b"\x85R",
            _global("torch.serialization load") + _text("/etc/passwd") + b"\x85R",
            _global("torch.hub load") + _text("a/b") + _text("c") + b"\x86R",
            _global("os system"),
            _global("x" * 100_000 + " y"),
            _global("\x1b[2J y"),
        )
    )
    replace_pickle(scene.folder, _START + _text(_FIRST) + pickled + b"s.")


@attack(refused=True)
def deep_nesting(scene: Scene) -> None:
    depth = scene.random.choice((1000, 200_000, 900_000))
    pickled = scene.random.choice(
        (
            b")" + b"\x85" * depth + b"K\x01s",
            _text("a") + b"]" * depth + b"a" * (depth - 1) + b"s",
            _text("a") + b"(" * depth + b"t" * depth + b"s",
            (b"}" + _text("a")) * min(depth, 100_000) + b"N",
        )
    )
    replace_pickle(scene.folder, _START + pickled + b".")


@attack(refused=True)
def memo_bombs(scene: Scene) -> None:
    """Each tuple holds the last one twice: 2^60 to hash, copy or print."""
    doubled = b"K\x01\x85q\x00" + b"".join(
        b"0h%ch%c\x86q%c" % (number, number, number + 1) for number in range(60)
    )
    ending = scene.random.choice((b"K\x01s", b"0" + _text("a") + b"h\x3cs", b""))
    count = scene.random.choice((1, 1 << 18))
    replace_pickle(scene.folder, _START + doubled + ending + b"h\x3c" * count + b".")


@attack(refused=True)
def endless_opcodes(scene: Scene) -> None:
    content = scene.random.choice((b"N0", b"}0", b"K\x010")) * (3 << 20)
    replace_pickle(scene.folder, _START + content + b".")


@attack(refused=True)
def broken_stacks(scene: Scene) -> None:
    content = scene.random.choice(
        (
            b"",
            b".",
            b"\x80\x02.",
            b"\x80\x02}",
            b"\x80\x02}s.",
            b"\x80\x02}u.",
            b"\x80\x02t.",
            b"\x80\x02(((((",
            b"\x80\x02h\xff.",
            b"\x80\x02Rb.",
            b"\x80\x02}}b0.",
            b"\x80\x02}(u0.",
            b"\x80\x02Q.",
            b"\x80\x02X\xff\xff\xff\xff.",
            b"\x80\x02\x8a\xff.",
            b"\x80\x02\x8b\xff\xff\xff\x7f.",
            b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
            b"ios\nsystem\n.",
            b"I1" + b"0" * 1_000_000 + b"\n.",
            b"\x80\x02r\xff\xff\xff\xff.",
            b"\x80\x02)r\xff\xff\xff\x7fj\xff\xff\xff\x7f.",
        )
    )
    replace_pickle(scene.folder, content)


def _tensor(storage: bytes, *parts: bytes) -> bytes:
    rebuild = _global("torch._utils _rebuild_tensor_v2")
    return rebuild + b"(" + storage + b"".join(parts) + b"tR"


def _storage(kind: str = "FloatStorage", key: str = "0", count: int = 16) -> bytes:
    parts = _text("storage") + _global(f"torch {kind}") + _text(key) + _text("cpu")
    return b"(" + parts + _long(count) + b"tQ"


@attack(refused=True)
def views_beyond_their_storage(scene: Scene) -> None:
    def sizes(*numbers: int) -> bytes:
        return b"(" + b"".join(map(_long, numbers)) + b"t"

    random = scene.random
    flags = b"\x89" + _global("collections OrderedDict") + b")R"
    huge = random.choice((2**20, 2**40, 2**62, 2**63, -1, -4, 2**200))
    plain = _storage()
    view = random.choice(
        (
            (plain, _long(huge), sizes(4, 4), sizes(4, 1)),
            (plain, _long(0), sizes(huge, 4), sizes(4, 1)),
            (plain, _long(0), sizes(huge, huge), sizes(0, 0)),
            (plain, _long(0), sizes(4, 4), sizes(huge, 1)),
            (plain, _long(0), sizes(4, 4), sizes(-4, -1)),
            (plain, _long(0), sizes(*[1] * 70), sizes(*[1] * 70)),
            (plain, _long(0), sizes(4, 4), sizes(1)),
            (plain, b"N", sizes(4, 4), sizes(4, 1)),
            (plain, b"\x88", sizes(4, 4), sizes(4, 1)),
            (_storage(key="99"), _long(0), sizes(4, 4), sizes(4, 1)),
            (_storage(key="../data.pkl"), _long(0), sizes(4, 4), sizes(4, 1)),
            (_storage(kind="NoStorage"), _long(0), sizes(4, 4), sizes(4, 1)),
            (_storage(kind="DoubleStorage"), _long(0), sizes(4, 4), sizes(4, 1)),
            (_storage(kind="QInt8Storage"), _long(0), sizes(4, 4), sizes(4, 1)),
            (_storage(count=huge), _long(8), sizes(4, 4), sizes(4, 1)),
            (b"N", _long(0), sizes(4, 4), sizes(4, 1)),
        )
    )
    tensor = _tensor(*view, flags)
    replace_pickle(scene.folder, _START + _text(_FIRST) + tensor + b"s.")


@attack(refused=True)
def many_views_of_one_storage(scene: Scene) -> None:
    """4096 transposed layers of 1 MB, each a copy once it is read: 4 GB."""
    weight = torch.zeros(512, 512).t()
    named = {
        f"blocks.{head}.layers.{layer}.weight": weight[:]
        for head in range(64)
        for layer in range(64)
    }
    torch.save(named, scene.folder / "model.pt")
