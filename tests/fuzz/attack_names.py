# SPDX-License-Identifier: Apache-2.0
"""Names that lead elsewhere, and things that are no files."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from tests.fuzz.attacks import Scene, attack

_INDEX = "model.safetensors.index.json"
_OUTSIDE = (
    "../secret.safetensors",
    "../../../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "/dev/zero.safetensors",
    "/proc/self/environ",
    "./a.safetensors",
    "sub/a.safetensors",
    "..",
    ".",
    "",
    "~/a.safetensors",
    "a\0.safetensors",
    "a\n.safetensors",
    "\x1b[2J.safetensors",
    "\ud800.safetensors",
    "x" * 5000 + ".safetensors",
    "evil.py",
    "config.json",
    "file:///etc/passwd",
    "https://example.com/a.safetensors",
    "C:\\a.safetensors",
    "..\\a.safetensors",
)


@attack(refused=True)
def index_that_points_elsewhere(scene: Scene) -> None:
    files = scene.write_form("full model, sharded")
    (scene.folder.parent / "secret.safetensors").write_bytes(
        files["model-00002-of-00003.safetensors"]
    )
    index = json.loads(files[_INDEX])
    names = sorted(n for n in index["weight_map"] if n.startswith("medusa"))
    for name in scene.random.sample(names, scene.random.choice((1, len(names)))):
        index["weight_map"][name] = scene.random.choice(_OUTSIDE)
    (scene.folder / _INDEX).write_text(json.dumps(index))


@attack(refused=True)
def index_of_many_files(scene: Scene) -> None:
    weight_map = {f"medusa_head.{n}.x": f"{n}.safetensors" for n in range(20_000)}
    (scene.folder / _INDEX).write_text(json.dumps({"weight_map": weight_map}))


@attack(refused=True)
def index_of_something_else(scene: Scene) -> None:
    weight_map = scene.random.choice(
        (None, [], {}, "x", {"a": None}, {"a": ["x"]}, {"a": 3}, {"a": {"b": "c"}})
    )
    (scene.folder / _INDEX).write_text(json.dumps({"weight_map": weight_map}))


def _replace(scene: Scene) -> Path:
    """Take away the weights or the config, and return where they were."""
    files = scene.write_form("reference, own LM heads")
    name = scene.random.choice(sorted(files))
    (scene.folder / name).unlink()
    return scene.folder / name


@attack(refused=True)
def something_that_is_no_file(scene: Scene) -> None:
    place = _replace(scene)
    kind = scene.random.randrange(6)
    if kind == 0:
        place.mkdir()
    elif kind == 1:
        os.mkfifo(place)
    elif kind == 2:
        place.symlink_to(scene.random.choice(("/dev/zero", "/dev/tty", "/dev/full")))
    elif kind == 3:
        place.symlink_to(scene.folder / "nowhere")
    elif kind == 4:
        place.symlink_to(place.name)  # to itself
    else:
        _make_socket(place)


def _make_socket(place: Path) -> None:
    # A socket's address is short; that of the place need not be.
    before = Path.cwd()
    os.chdir(place.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(place.name)
    finally:
        os.chdir(before)


@attack(refused=True)
def link_to_a_secret(scene: Scene) -> None:
    place = _replace(scene)
    place.symlink_to("/etc/passwd")


@attack(refused=False)
def links_as_in_the_hubs_cache(scene: Scene) -> None:
    files = scene.write_form()
    blobs = scene.folder / "blobs"
    blobs.mkdir()
    for name in files:
        (scene.folder / name).rename(blobs / name)
        (scene.folder / name).symlink_to(Path("blobs") / name)


@attack(refused=True)
def no_permission(scene: Scene) -> Path | None:
    place = _replace(scene)
    kind = scene.random.randrange(3)
    place.write_bytes(b"{}")
    if kind == 0:
        place.chmod(0)
    else:
        scene.folder.chmod(0o300 if kind == 1 else 0)
    return place if kind == 2 else None


@attack(refused=True)
def nothing_there(scene: Scene) -> Path:
    name = scene.random.choice(
        ("none", "none.pt", "a\nb", "~nobody-of-that-name/x", "x" * 300, "a/b/c", "..x")
    )
    return scene.folder / name


@attack(refused=True)
def a_file_of_another_kind(scene: Scene) -> Path:
    files = scene.write_form("canonical, mlp")
    name = scene.random.choice(("x.gguf", "x.npz", "x.h5", "x", "x.pkl", "x.json"))
    (scene.folder / name).write_bytes(files["model.safetensors"])
    return scene.folder / name


@attack(refused=True)
def a_missing_file(scene: Scene) -> None:
    form = scene.random.choice(sorted(scene.forms))
    files = scene.write_form(form)
    weights = [n for n in files if n.endswith((".safetensors", ".pt", ".bin"))]
    if form == "full model, sharded":
        weights = [n for n in weights if "00001" not in n]  # the backbone's own
    (scene.folder / scene.random.choice(weights)).unlink()
