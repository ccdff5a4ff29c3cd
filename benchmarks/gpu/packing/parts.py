# SPDX-License-Identifier: Apache-2.0
"""A stream cut into parts small enough to be carried, with a manifest.

`bootstrap.py` reads what is written here; it knows the same names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vllm_medusa.files import atomic_path

FORMAT = 1
MANIFEST = "manifest.json"


class PartWriter:
    """Writes `part-000`, `part-001`, … of at most `part_bytes` bytes into `folder`."""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        if part_bytes < 1:
            raise ValueError(f"a part has at least one byte, not {part_bytes}")
        self._folder = folder
        self._part_bytes = part_bytes
        self._rest = bytearray()
        self._whole = hashlib.sha256()
        self._size = 0
        self._parts: list[dict[str, Any]] = []

    def write(self, data: bytes) -> None:
        """Add `data` to the stream; full parts are on the disk when this returns."""
        self._whole.update(data)
        self._size += len(data)
        self._rest += data
        while len(self._rest) >= self._part_bytes:
            self._flush(self._part_bytes)

    def _flush(self, size: int) -> None:
        content = bytes(self._rest[:size])
        del self._rest[:size]
        name = f"part-{len(self._parts):03}"
        with atomic_path(self._folder / name) as temporary:
            temporary.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self._parts.append({"name": name, "size": size, "sha256": digest})

    def finish(self) -> dict[str, Any]:
        """Write the last part; return "parts" and "whole" of the manifest.

        Parts of an earlier, longer stream are removed.
        """
        if self._rest:
            self._flush(len(self._rest))
        names = {part["name"] for part in self._parts}
        for path in self._folder.glob("part-*"):
            if path.name not in names:
                path.unlink()
        whole = {"size": self._size, "sha256": self._whole.hexdigest()}
        return {"parts": self._parts, "whole": whole}


def write_parts(
    folder: Path,
    part_bytes: int,
    blocks: Iterable[tuple[int, bytes]],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the parts and, last of all, the manifest; return the manifest.

    `blocks` are (bytes before, bytes after compression); the manifest lists the
    latter, so that blocks can be unpacked side by side. `about` joins it as it is.
    """
    # Without a manifest nobody takes parts of two streams for one.
    (folder / MANIFEST).unlink(missing_ok=True)
    writer = PartWriter(folder, part_bytes)
    sizes = []
    unpacked = 0
    for raw_size, block in blocks:
        writer.write(block)
        sizes.append(len(block))
        unpacked += raw_size
        done = sum(sizes) >> 20
        print(f"\r{unpacked >> 20} MiB packed into {done} MiB", end="", flush=True)
    print()
    manifest = {
        "format": FORMAT,
        **about,
        "compression": "xz",
        "unpacked_size": unpacked,
        "blocks": sizes,
        **writer.finish(),
    }
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest
