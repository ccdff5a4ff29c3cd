# SPDX-License-Identifier: Apache-2.0
"""The project itself as entries of the stream."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import vllm_medusa
from benchmarks.gpu.packing.errors import PackingError
from benchmarks.gpu.packing.stream import Entry, content_entry

ROOT = Path(__file__).resolve().parents[3]


def git(*arguments: str, root: Path = ROOT) -> str:
    """Output of a git command in the repository.

    Raises:
        PackingError: git failed, or there is no repository.
    """
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        raise PackingError(
            f"the project's files are listed by git, which failed: {reason.strip()}"
        ) from None
    return done.stdout


def tracked_entries(root: Path = ROOT) -> Iterator[Entry]:
    """Every tracked file as it is in the working tree, under project/.

    Raises:
        PackingError: this is no git repository.
    """
    for name in git("ls-files", "-z", root=root).split("\0"):
        path = root / name
        # A file may be deleted but not yet committed so.
        if name and path.is_file():
            executable = os.access(path, os.X_OK)
            # Read now: the file may change before its turn to be packed comes.
            yield content_entry(f"project/{name}", path.read_bytes(), executable)


def distribution_entries(root: Path = ROOT) -> Iterator[Entry]:
    """What makes the folder project/ an installed package: its metadata.

    vLLM finds the plug-in by the entry point in it.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    version = vllm_medusa.__version__
    folder = f"project/{project['name'].replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n"
    yield content_entry(f"{folder}/METADATA", metadata.encode())
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines = []
    for group, points in groups.items():
        lines += [
            f"[{group}]",
            *(f"{name} = {target}" for name, target in points.items()),
        ]
    yield content_entry(f"{folder}/entry_points.txt", "\n".join([*lines, ""]).encode())
