# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors files that lie, and tensors that are not what they seem."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import save_file

from tests.fuzz.attacks import Scene, attack
from tests.unit.checkpoint.support import HIDDEN, canonical_tensors, write

_FIRST = "blocks.0.layers.0.weight"


def _parts(scene: Scene) -> tuple[dict[str, Any], bytes]:
    files = scene.forms["vLLM, token map"]
    content = files["model.safetensors"]
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _write(scene: Scene, header: dict[str, Any] | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    (scene.folder / "model.safetensors").write_bytes(content)


@attack(refused=True)
def absurd_shape(scene: Scene) -> None:
    header, data = _parts(scene)
    name = scene.random.choice([key for key in header if key != "__metadata__"])
    header[name]["shape"] = scene.random.choice(
        (
            [2**62, 4],
            [2**32, 2**32],
            [2**63, 2**63],
            [-1, -16],
            [-4, 4],
            [0, 0],
            [0],
            [],
            [1] * 10_000,
            [1.5, 4],
            ["4", 4],
            [10**30],
            None,
        )
    )
    _write(scene, header, data)


@attack(refused=True)
def absurd_offsets(scene: Scene) -> None:
    header, data = _parts(scene)
    name = scene.random.choice([key for key in header if key != "__metadata__"])
    start, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = scene.random.choice(
        (
            [end, start],
            [start + 4, end + 4],
            [start, end - 4],
            [0, 2**63],
            [-8, end],
            [2**64 - 8, 2**64],
            [start],
            [start, end, end],
            "0",
        )
    )
    _write(scene, header, data)


@attack(refused=True)
def overlapping_tensors(scene: Scene) -> None:
    header, data = _parts(scene)
    names = [key for key in header if key.endswith("weight")]
    one, other = scene.random.sample(names, 2)
    header[one]["data_offsets"] = header[other]["data_offsets"]
    _write(scene, header, data)


@attack(refused=True)
def wrong_dtype(scene: Scene) -> None:
    header, data = _parts(scene)
    name = scene.random.choice([key for key in header if key != "__metadata__"])
    header[name]["dtype"] = scene.random.choice(
        ("F16", "F64", "BOOL", "U8", "I32", "F8_E4M3", "F4", "C64", "", "f32", None, 3)
    )
    _write(scene, header, data)


@attack(refused=True)
def lying_header_length(scene: Scene) -> None:
    header, data = _parts(scene)
    _write(scene, header, data)
    file = scene.folder / "model.safetensors"
    length = scene.random.choice((0, 1, 2**24, 2**24 + 1, 10**8, 2**63, 2**64 - 1))
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])


@attack(refused=True)
def header_of_nothing(scene: Scene) -> None:
    texts = (b"{}", b"[]", b"null", b"{" * 10_000, b"{}" * 9, b'{"__metadata__":3}')
    _write(scene, scene.random.choice(texts), b"")


@attack(refused=True)
def huge_header(scene: Scene) -> None:
    """Of 24 MB, most of it empty tensors."""
    entry = '"x%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = "{" + ",".join(entry % number for number in range(400_000)) + "}"
    _write(scene, text.encode(), b"")


@attack(refused=True)
def many_tensors(scene: Scene) -> None:
    entry = '"x%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = "{" + ",".join(entry % number for number in range(50_000)) + "}"
    _write(scene, text.encode(), b"")


@attack(refused=True)
def name_twice_in_the_header(scene: Scene) -> None:
    header, data = _parts(scene)
    entry = json.dumps({_FIRST: header[_FIRST]})[1:-1]
    text = json.dumps(header)[:-1] + "," + entry.replace("[0, 64]", "[8, 72]") + "}"
    if "[0, 64]" not in entry:
        text = text.replace('"F32"', '"F64"', 1)
    _write(scene, text.encode(), data)


@attack(refused=True)
def many_names_for_one_weight(scene: Scene) -> None:
    """4096 layers by safetensors' aliases, from a file of 4 MB: 16 GB in memory."""
    size = 1024
    weight = {_FIRST: torch.zeros(size, size)}
    aliases = {
        f"blocks.{head}.layers.{layer}.weight": _FIRST
        for head in range(64)
        for layer in range(64)
    }
    del aliases[_FIRST]
    save_file(weight, scene.folder / "model.safetensors", metadata=aliases)


@attack(refused=False)
def aliases_that_nothing_asks_for(scene: Scene) -> None:
    """Beside a prefix only prefixed names count; 100,000 others must cost nothing."""
    from tests.unit.checkpoint.support import reference_names

    named = reference_names(canonical_tensors(), "medusa_head.")
    aliases = {f"x{number}": sorted(named)[0] for number in range(100_000)}
    save_file(named, scene.folder / "model.safetensors", metadata=aliases)


@attack(refused=True)
def aliases_in_circles(scene: Scene) -> None:
    tensors = canonical_tensors(layers=1, projection=False)
    kept = {k: v for k, v in tensors.items() if not k.startswith("blocks.1.")}
    aliases = {f"blocks.1.layers.0.{part}": "blocks.9.x" for part in ("weight", "bias")}
    save_file(kept, scene.folder / "model.safetensors", metadata=aliases)


@attack(refused=True)
def tensors_without_layers(scene: Scene) -> None:
    names = scene.random.choice(
        (("blocks.0.norms.0.weight",), ("lm_heads.0.weight",), ("token_map",))
    )
    write(
        scene.folder, "model.safetensors", {name: torch.ones(HIDDEN) for name in names}
    )


@attack(refused=True)
def strange_shapes(scene: Scene) -> None:
    tensors = canonical_tensors() | {"token_map": torch.arange(5)}
    name = scene.random.choice(sorted(tensors))
    shape = scene.random.choice(((), (1,), (0,), (2, 2, 2), (1,) * 8, (0, 4)))
    tensors[name] = torch.ones(shape).to(tensors[name].dtype)
    write(scene.folder, scene.random.choice(("m.safetensors", "m.pt")), tensors)


@attack(refused=True)
def strange_names(scene: Scene) -> None:
    tensors = canonical_tensors()
    name = scene.random.choice(
        (
            "blocks.0.layers.0.weight\n",
            "blocks.٣.layers.0.weight",
            "blocks.00.layers.0.weight",
            "blocks.-1.layers.0.weight",
            "blocks.9999.layers.0.weight",
            "blocks.0.layers.9999.weight",
            "../../etc/passwd",
            "\x1b]0;title\x07",
            "a\0b",
            "x" * 1_000_000,
            "",
        )
    )
    tensors[name] = torch.ones(HIDDEN, HIDDEN)
    write(scene.folder, scene.random.choice(("m.safetensors", "m.pt")), tensors)


@attack(refused=True)
def numbers_that_are_none(scene: Scene) -> None:
    tensors = canonical_tensors()
    name = scene.random.choice(sorted(tensors))
    bad = scene.random.choice((float("nan"), float("inf"), -float("inf")))
    tensors[name].view(-1)[scene.random.randrange(4)] = bad
    write(scene.folder, scene.random.choice(("m.safetensors", "m.pt")), tensors)


@attack(refused=True)
def strange_token_map(scene: Scene) -> None:
    token_map = scene.random.choice(
        (
            torch.tensor([0, 0]),
            torch.tensor([-1, 2]),
            torch.tensor([2**62, 1]),
            torch.tensor([], dtype=torch.int64),
            torch.arange(50_000),
            torch.ones(3),
            torch.ones(3, dtype=torch.bool),
            torch.tensor(3),
        )
    )
    tensors = canonical_tensors() | {"token_map": token_map}
    write(scene.folder, scene.random.choice(("m.safetensors", "m.pt")), tensors)
