# SPDX-License-Identifier: Apache-2.0
"""Many files as one compressed stream, the same bytes for the same files.

A tar archive is cut into blocks, and each block becomes an xz stream of its own: they
are compressed side by side here and unpacked side by side there, and a block that was
compressed in an earlier run is taken from a folder. Large files start new blocks, so
that a change elsewhere leaves theirs as they were. One after another the streams are a
valid .tar.xz file.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vllm_medusa.files import atomic_path

BLOCK_BYTES = 32 << 20
LARGE_BYTES = 4 << 20
"""Files of this size have blocks of their own."""
PRESET = 6


@dataclass(frozen=True)
class Entry:
    """A file of the stream: its `name` there, and how to open and run it.

    `open` gives its content as a binary file; `size` is in bytes.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]
    executable: bool = False


def content_entry(name: str, content: bytes, executable: bool = False) -> Entry:
    """An entry whose content is at hand."""
    return Entry(name, len(content), lambda: io.BytesIO(content), executable)


def tar_header(entry: Entry) -> tarfile.TarInfo:
    """An archive member without owner and time: equal files give equal bytes."""
    member = tarfile.TarInfo(entry.name)
    member.size = entry.size
    member.mode = 0o755 if entry.executable else 0o644
    return member


class _Blocks:
    """What tarfile writes into: collects whole blocks."""

    def __init__(self) -> None:
        self.full: deque[bytes] = deque()
        self._rest = bytearray()
        self._written = 0

    def tell(self) -> int:
        return self._written

    def write(self, data: bytes) -> int:
        self._written += len(data)
        self._rest += data
        while len(self._rest) >= BLOCK_BYTES:
            self.full.append(bytes(self._rest[:BLOCK_BYTES]))
            del self._rest[:BLOCK_BYTES]
        return len(data)

    def cut(self) -> None:
        """End the block here."""
        if self._rest:
            self.full.append(bytes(self._rest))
            self._rest.clear()


def raw_blocks(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The tar archive of `entries`, in the order of their names, as blocks.

    ValueError if two entries have one name.
    """
    blocks = _Blocks()
    last = None
    with tarfile.open(fileobj=blocks, mode="w", format=tarfile.GNU_FORMAT) as archive:  # type: ignore[call-overload]
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name == last:
                raise ValueError(f"two files are called {entry.name}")
            last = entry.name
            if entry.size >= LARGE_BYTES:
                blocks.cut()
            with entry.open() as content:
                archive.addfile(tar_header(entry), content)
            if entry.size >= LARGE_BYTES:
                blocks.cut()
            while blocks.full:
                yield blocks.full.popleft()
    blocks.cut()
    yield from blocks.full


def compress(block: bytes, folder: Path) -> bytes:
    """`block` as an xz stream, from `folder` if it was compressed before."""
    path = folder / f"{hashlib.sha256(block).hexdigest()}-{PRESET}.xz"
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_bytes(lzma.compress(block, preset=PRESET))
    return path.read_bytes()


def compressed_blocks(
    entries: Iterable[Entry], folder: Path, processes: int
) -> Iterator[tuple[int, bytes]]:
    """(bytes before, bytes after) of every block, in order; `folder` keeps them."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting: deque[tuple[int, Future[bytes]]] = deque()

    def next_done() -> tuple[int, bytes]:
        size, future = waiting.popleft()
        return size, future.result()

    with ProcessPoolExecutor(processes) as pool:
        for block in raw_blocks(entries):
            waiting.append((len(block), pool.submit(compress, block, folder)))
            if len(waiting) > 2 * processes:
                yield next_done()
        while waiting:
            yield next_done()
