# SPDX-License-Identifier: Apache-2.0
"""Bring a folder of patches/ up to date with a vLLM that is installed or unpacked.

    python patches/update.py 0.34.0 --vllm DIR [--since 0.33]

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import difflib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_medusa.compatibility import module_file, written_source
from vllm_medusa.files import atomic_path
from vllm_medusa.function_source import source_hash

PATCHES = Path(__file__).parent
_CONTEXT = 3
# Lines around a change that difflib gets to see: it may align a blank line otherwise.
_MARGIN = 20


def patch_name(function: str) -> str:
    """Return the file name of a function's patch."""
    return function.replace(":", ".") + ".patch"


def header(function: str, entry: Mapping[str, Any], version: str) -> str:
    """Return the text above a patch's first hunk."""
    through = f"Through: {entry['through']}\n" if "through" in entry else ""
    return (
        f"Function: {function}\n{through}vLLM: {version}\n"
        f"SHA-256: {entry['sha256']}\n\n{entry['why']}\n\n"
    )


def diff(path: str, before: Sequence[str], after: Sequence[str]) -> str:
    """Return the unified diff of one file.

    Only the part that changed is compared: difflib takes seconds for a long file.
    """
    first, last = 0, 0
    shorter = min(len(before), len(after))
    while first < shorter and before[first] == after[first]:
        first += 1
    while last < shorter - first and before[-1 - last] == after[-1 - last]:
        last += 1
    begin = max(0, first - _MARGIN)
    end = max(0, last - _MARGIN)
    hunks = list(
        difflib.unified_diff(
            before[begin : len(before) - end],
            after[begin : len(after) - end],
            n=_CONTEXT,
        )
    )[2:]
    moved = [_shift(line, begin) if line.startswith("@@") else line for line in hunks]
    return f"--- a/{path}\n+++ b/{path}\n" + "".join(moved)


def _shift(hunk_header: str, offset: int) -> str:
    _, old, new, _ = hunk_header.split(maxsplit=3)
    moved = []
    for span in (old, new):
        start, comma, count = span[1:].partition(",")
        moved.append(f"{span[0]}{int(start) + offset}{comma}{count}")
    return f"@@ {' '.join(moved)} @@\n"


def apply(patch: str, root: Path, path: str) -> list[str] | None:
    """Return the lines of a patched file, or None if the patch does not apply.

    Git finds a hunk's lines at another place of the file, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path)
        copy.parent.mkdir(parents=True)
        copy.write_text((root / path).read_text())
        done = subprocess.run(
            ["git", "apply", "-"], cwd=folder, input=patch, text=True, check=False
        )
        if done.returncode:
            return None
        return copy.read_text().splitlines(keepends=True)


def update(root: Path, version: str, since: Path, folder: Path) -> list[str]:
    """Write `folder` from the list and patches of `since`; return what went wrong.

    Functions that are gone and patches that do not apply are left out: both are for
    a person to solve.
    """
    problems = []
    kept = {}
    functions = json.loads((since / "hooks.json").read_text())["functions"]
    folder.mkdir(exist_ok=True)
    for function, entry in functions.items():
        source = written_source(root, function, entry.get("through"))
        known = entry.pop("sha256", None)
        if source is None:
            problems.append(f"{function}: gone")
            continue
        entry["sha256"] = source_hash(source)
        kept[function] = entry
        if known != entry["sha256"]:
            print(f"{function}: differs from that in {since.name}")
        if entry["kind"] != "changes":
            continue
        old_patch = since / patch_name(function)
        if not old_patch.exists():
            problems.append(f"{function}: has no patch")
            continue
        file = module_file(root, function.partition(":")[0])
        path = file.relative_to(root).as_posix()
        after = apply(old_patch.read_text(), root, path)
        if after is None:
            problems.append(f"{function}: the patch does not apply")
            continue
        before = file.read_text().splitlines(keepends=True)
        text = header(function, entry, version) + diff(path, before, after)
        with atomic_path(folder / patch_name(function)) as temporary:
            temporary.write_text(text)
    with atomic_path(folder / "hooks.json") as temporary:
        content = {"vllm": version, "functions": kept}
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    return problems


def main() -> int:
    """Run as a script; the exit code is 1 if there is work left for a person."""
    parser = argparse.ArgumentParser(description="Update patches/ for a vLLM.")
    parser.add_argument("version", help="the version of that vLLM, such as 0.34.0")
    parser.add_argument(
        "--vllm",
        required=True,
        type=Path,
        help="the folder that holds its package `vllm`: site-packages, or where the "
        "wheel was unpacked",
    )
    parser.add_argument(
        "--since", help="minor version to start from (default: its own, else the last)"
    )
    args = parser.parse_args()
    if not (args.vllm / "vllm").is_dir():
        parser.error(f"--vllm {args.vllm} has no folder vllm")
    folder = PATCHES / ".".join(args.version.split(".")[:2])
    last = max(
        (file.parent for file in PATCHES.glob("*/hooks.json")),
        key=lambda path: [int(part) for part in path.name.split(".")],
    )
    own = folder if (folder / "hooks.json").exists() else last
    since = PATCHES / args.since if args.since else own
    problems = update(args.vllm, args.version, since, folder)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
