# SPDX-License-Identifier: Apache-2.0
"""Zip archives that lie about what they hold."""

from __future__ import annotations

import bz2  # noqa: F401 (zipfile would import it when it is too late)
import lzma  # noqa: F401
import struct
import zipfile

from tests.fuzz.attacks import Scene, attack
from tests.fuzz.mutate_bytes import mutate_bytes
from tests.unit.checkpoint.support import canonical_tensors, write


def _whole(scene: Scene) -> bytes:
    write(scene.folder, "model.pt", canonical_tensors())
    return (scene.folder / "model.pt").read_bytes()


def _put(scene: Scene, content: bytes) -> None:
    (scene.folder / "model.pt").write_bytes(content)


@attack(refused=True)
def compressed_records(scene: Scene) -> None:
    """Zeros packed a thousandfold, in a record or as another pickle."""
    method = scene.random.choice(
        (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    _whole(scene)
    file = scene.folder / "model.pt"
    with zipfile.ZipFile(file, "a", method) as archive:
        name = scene.random.choice(
            ("archive/data/0", "archive/data.pkl", "x", "model/x")
        )
        archive.writestr(name, bytes(2 << 20))


@attack(refused=True)
def many_records(scene: Scene) -> None:
    with zipfile.ZipFile(scene.folder / "model.pt", "w") as archive:
        for number in range(scene.random.choice((20_000, 60_000))):
            archive.writestr(f"archive/data/{number}" + "x" * 60, b"")


@attack(refused=True)
def no_pickle_or_two(scene: Scene) -> None:
    with zipfile.ZipFile(scene.folder / "model.pt", "w") as archive:
        names = (("data.pkl",), ("a/data.pkl", "b/data.pkl"), (), ("../data.pkl",))
        for name in scene.random.choice(names):
            archive.writestr(name, b"\x80\x02}.")


@attack(refused=True)
def pickle_larger_than_any(scene: Scene) -> None:
    with zipfile.ZipFile(scene.folder / "model.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * (9 << 20) + b"}.")


@attack(refused=False)
def directory_that_lies(scene: Scene) -> None:
    """Sizes, offsets and counts of the end record and of the central directory."""
    content = bytearray(_whole(scene))
    end = content.rindex(b"PK\5\6")
    entry = content.index(b"PK\1\2")
    place, form = scene.random.choice(
        (
            (end + 10, "<H"),  # entries
            (end + 12, "<I"),  # size of the directory
            (end + 16, "<I"),  # its place
            (entry + 20, "<I"),  # compressed size
            (entry + 24, "<I"),  # size
            (entry + 28, "<H"),  # length of the name
            (entry + 42, "<I"),  # place of the record
            (26, "<H"),  # length of the name before the record
        )
    )
    most = (1 << 8 * struct.calcsize(form)) - 1
    number = scene.random.choice((0, 1, most // 2, most - 1, most))
    # What nobody reads, such as the number of entries, may say what it likes.
    struct.pack_into(form, content, place, number)
    _put(scene, bytes(content))


@attack(refused=False)
def wide_directory(scene: Scene) -> None:
    """A zip64 end record that claims terabytes."""
    content = _whole(scene)
    end = content.rindex(b"PK\5\6")
    size = scene.random.choice((0, 1 << 20, 1 << 40, (1 << 63) - 1, (1 << 64) - 1))
    count = scene.random.choice((0, 1, 1 << 40))
    record = struct.pack(
        "<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, 0
    )
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    _put(scene, content[:end] + record + locator + content[end:])


@attack(refused=False)
def flipped_directory(scene: Scene) -> None:
    content = _whole(scene)
    start = content.index(b"PK\1\2")
    _put(scene, content[:start] + mutate_bytes(content[start:], scene.random))


@attack(refused=False)
def flipped_pickle(scene: Scene) -> None:
    from tests.fuzz.attack_pickles import replace_pickle

    _whole(scene)
    with zipfile.ZipFile(scene.folder / "model.pt") as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
        pickled = archive.read(name)
    (scene.folder / "model.pt").unlink()
    replace_pickle(scene.folder, mutate_bytes(pickled, scene.random))


@attack(refused=True)
def archive_of_something_else(scene: Scene) -> None:
    content = scene.random.choice(
        (b"PK\5\6" + bytes(18), b"\x1f\x8b" + bytes(50), b"\x80\x02}.", b"PK\3\4", b"")
    )
    _put(scene, content)
