# SPDX-License-Identifier: Apache-2.0
"""Join and unpack what `benchmarks.gpu.prepare` packed; needs nothing but Python.

    python bootstrap.py --parts DIR --target TARGET

DIR holds manifest.json and any of its parts. Parts may come over several trips: each
good one is kept under TARGET until all are there. Then TARGET/site (packages),
TARGET/project and TARGET/models are made. Exit code 0: installed; 2: no usable
manifest; 3: parts are still missing; 4: a part is damaged; 5: installed, but an import
fails.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST = "manifest.json"
BAD_MANIFEST, MISSING_PARTS, DAMAGED_PART, FAILED_IMPORT = 2, 3, 4, 5
FOLDERS = ("site", "project", "models")
CHECK = """
import torch, vllm
print(f"vllm {vllm.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}")
if torch.cuda.is_available():
    print(f"GPU: {torch.cuda.get_device_name()}")
else:
    print("no GPU is visible to torch")
"""


class BootstrapError(Exception):
    """Ends the program with `code` and one message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def read_manifest(parts: Path, stage: Path) -> dict[str, Any]:
    """The manifest beside the parts, else the one of an earlier trip; kept in `stage`.

    BootstrapError if there is none, or parts of another package are in `stage`.
    """
    kept, found = stage / MANIFEST, parts / MANIFEST
    source = found if found.exists() else kept
    if not source.exists():
        raise BootstrapError(BAD_MANIFEST, f"no {MANIFEST} in {parts}: carry it too")
    try:
        text = source.read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
        known = manifest["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise BootstrapError(
            BAD_MANIFEST, f"{source} is no manifest ({error!r}): carry it again"
        ) from None
    if not known:
        raise BootstrapError(
            BAD_MANIFEST, f"{source} has format {manifest['format']}, not {FORMAT}"
        )
    if kept.exists() and json.loads(kept.read_text())["whole"] != manifest["whole"]:
        # Parts of another package are of no use any more.
        shutil.rmtree(stage)
    stage.mkdir(parents=True, exist_ok=True)
    write_whole(kept, text.encode())
    return manifest


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name first, so that half of it is never taken."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.replace(path)


def problem(content: bytes, part: dict[str, Any]) -> str | None:
    """What is wrong with a part's content, if anything."""
    if len(content) != part["size"]:
        return f"{len(content)} bytes instead of {part['size']}"
    digest = hashlib.sha256(content).hexdigest()
    if digest != part["sha256"]:
        return f"SHA-256 {digest[:12]}… instead of {part['sha256'][:12]}…"
    return None


def collect(manifest: dict[str, Any], parts: Path, stage: Path) -> None:
    """Keep every good part of `parts` in `stage`.

    BootstrapError if a part is damaged, or some have not come yet; good parts are
    kept all the same.
    """
    damaged, missing = [], []
    for part in manifest["parts"]:
        name = part["name"]
        kept, arrived = stage / name, parts / name
        if kept.exists() and problem(kept.read_bytes(), part) is None:
            continue
        if not arrived.exists():
            missing.append(name)
            continue
        content = arrived.read_bytes()
        if reason := problem(content, part):
            damaged.append(f"{name} ({reason})")
        else:
            write_whole(kept, content)
    count = len(manifest["parts"])
    print(f"{count - len(missing) - len(damaged)} of {count} parts are here")
    if damaged:
        raise BootstrapError(
            DAMAGED_PART, f"damaged: {', '.join(damaged)}; carry these again"
        )
    if missing:
        raise BootstrapError(MISSING_PARTS, f"still missing: {' '.join(missing)}")


def packed_blocks(manifest: dict[str, Any], stage: Path) -> Iterator[bytes]:
    """The blocks of the stream, cut out of the parts."""
    rest = bytearray()
    names = iter(part["name"] for part in manifest["parts"])
    for size in manifest["blocks"]:
        while len(rest) < size:
            rest += (stage / next(names)).read_bytes()
        yield bytes(rest[:size])
        del rest[:size]


class BlockReader(io.RawIOBase):
    """The unpacked stream as a file; blocks are unpacked ahead, side by side."""

    def __init__(self, blocks: Iterator[bytes], threads: int) -> None:
        self._blocks = blocks
        self._ahead = 2 * threads
        # lzma lets other threads run while it works.
        self._pool = ThreadPoolExecutor(threads)
        self._waiting: deque[Future[bytes]] = deque()
        self._content = memoryview(b"")

    def readable(self) -> bool:
        """It can be read, and nothing else."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what comes next; 0 at the end."""
        if not self._content:
            self._content = memoryview(self._next())
        count = min(len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count

    def _next(self) -> bytes:
        while len(self._waiting) < self._ahead:
            block = next(self._blocks, None)
            if block is None:
                break
            self._waiting.append(self._pool.submit(lzma.decompress, block))
        return self._waiting.popleft().result() if self._waiting else b""

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)
        super().close()


def unpack(manifest: dict[str, Any], stage: Path, target: Path) -> None:
    """Make the folders of `target` anew; half of one is never left under its name."""
    fresh = target / ".unpacking"
    shutil.rmtree(fresh, ignore_errors=True)
    threads = os.cpu_count() or 1
    with (
        BlockReader(packed_blocks(manifest, stage), threads) as raw,
        io.BufferedReader(raw, 1 << 20) as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        archive.extractall(fresh, filter="data")
    for name in FOLDERS:
        shutil.rmtree(target / name, ignore_errors=True)
        if (fresh / name).exists():
            (fresh / name).rename(target / name)
    shutil.rmtree(fresh)


def link_cuda(site: Path, search: list[str]) -> int:
    """Link CUDA libraries that lie elsewhere on the module path into site/nvidia.

    torch looks for them beside itself first. Those that were packed stay. Returns how
    many were linked.
    """
    count = 0
    for folder in search:
        root = Path(folder or ".") / "nvidia"
        if root.resolve() == (site / "nvidia").resolve():
            continue
        for library in sorted(root.glob("**/lib/*.so*")):
            link = site / "nvidia" / library.relative_to(root)
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(library.resolve())
                count += 1
    return count


def check_import(target: Path) -> None:
    """Import torch and vllm in a new process and print what they are.

    BootstrapError if that fails.
    """
    environment = {**os.environ, "PYTHONPATH": python_path(target)}
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise BootstrapError(
            FAILED_IMPORT,
            f"{done.stderr.strip()}\nunpacked, but the import fails; if a CUDA library "
            "lacks a symbol, pack it too: prepare --with-cuda NAME (cudnn, nccl, …)",
        )


def python_path(target: Path) -> str:
    """PYTHONPATH for what was unpacked, before what is set already."""
    parts = [target / "site", target / "project", os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(str(part) for part in parts if str(part) not in ("", "."))


def install(parts: Path, target: Path, check: bool) -> None:
    """Do what the module's text says.

    BootstrapError for everything that keeps it from being done.
    """
    stage, done = target / ".parts", target / "installed.json"
    manifest = read_manifest(parts, stage)
    installed = json.loads(done.read_text()) if done.exists() else None
    if installed == manifest["whole"]:
        print("already unpacked")
    else:
        collect(manifest, parts, stage)
        done.unlink(missing_ok=True)
        unpack(manifest, stage, target)
        write_whole(done, json.dumps(manifest["whole"]).encode())
    if linked := link_cuda(target / "site", sys.path):
        print(f"{linked} CUDA libraries of this machine linked")
    if check:
        check_import(target)
    print(f"export PYTHONPATH={python_path(target)}")


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--no-check", action="store_true", help="import nothing")
    arguments = parser.parse_args()
    try:
        install(arguments.parts, arguments.target.resolve(), not arguments.no_check)
    except BootstrapError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
