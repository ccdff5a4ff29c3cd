# SPDX-License-Identifier: Apache-2.0
"""Pack everything that a GPU machine without a network lacks into small parts.

Wheels of vLLM, of the torch and Triton that it is built for and of what else both need
are fetched with pip (from whatever it is configured with), stripped of what is not used
(strip.txt), joined with this project, the default model and the shapes to measure, and
compressed into parts of at most 60 MiB. `bootstrap.py`, which lies beside the parts,
joins and unpacks them there. The same input gives the same parts; a run cut short goes
on where it was.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.common.results import command_line
from benchmarks.gpu.packing.errors import PackingError
from benchmarks.gpu.packing.parts import write_parts
from benchmarks.gpu.packing.project import distribution_entries, git, tracked_entries
from benchmarks.gpu.packing.stream import Entry, compressed_blocks, content_entry
from benchmarks.gpu.packing.strip import GPUS, StripRules
from benchmarks.gpu.packing.wheels import (
    Requirement,
    cuda_requirements,
    fetch,
    kept_files,
    open_wheel,
    read_packages,
    supported_versions,
)
from benchmarks.gpu.shapes import SHAPES

BOOTSTRAP = Path(__file__).with_name("bootstrap.py")


def wheel_entries(
    stack: ExitStack, wheels: Sequence[Path], rules: StripRules
) -> Iterator[Entry]:
    """The kept files of all wheels under site/; `stack` closes the wheels.

    A file that two wheels hold (an empty `__init__.py` of a shared folder) is taken
    from the first.
    """
    seen: set[str] = set()
    for path in wheels:
        wheel = stack.enter_context(open_wheel(path))
        for name, info in kept_files(wheel, rules):
            if name not in seen:
                seen.add(name)
                executable = bool(info.external_attr >> 16 & 0o100)
                opener = partial(wheel.open, info)
                yield Entry(f"site/{name}", info.file_size, opener, executable)


def shape_entries() -> Iterator[Entry]:
    """A folder with a config for each shape, under models/: weights are made there."""
    for shape in SHAPES.values():
        yield content_entry(f"models/{shape.name}/config.json", shape.config_text())


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    versions = supported_versions()
    parser.add_argument("--out", type=Path, required=True, help="folder for the parts")
    parser.add_argument("--vllm", choices=versions, default=versions[-1])
    parser.add_argument(
        "--part-size", type=float, default=60, metavar="MIB", help="default 60"
    )
    parser.add_argument(
        "--gpu", choices=GPUS, default="hopper", help="which kernels to keep"
    )
    parser.add_argument(
        "--with-cuda",
        # torch 2.13 and 2.14 call functions that the NCCL of torch 2.11 lacks.
        default="nccl",
        metavar="NAMES",
        help="CUDA libraries to pack, in torch's versions: cudnn,nccl,cublas,…",
    )
    parser.add_argument(
        "--extra",
        action="append",
        default=[],
        metavar="NAME==VERSION",
        help="a further package (may be repeated)",
    )
    parser.add_argument(
        "--work", type=Path, help="wheels and packed blocks (default OUT.work)"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args(words)
    arguments.work = arguments.work or arguments.out.with_name(
        f"{arguments.out.name}.work"
    )
    if arguments.part_size <= 0:
        parser.error(f"--part-size must be positive, not {arguments.part_size}")
    return arguments


def prepare(arguments: argparse.Namespace) -> None:
    """Fetch, strip, pack, and print what there is to carry.

    Raises:
        PackingError: see `fetch`, `read_packages` and `tracked_entries`.
    """
    wheels_folder = arguments.work / "wheels"
    packages = read_packages(arguments.vllm)
    packages += [Requirement.parse(text) for text in arguments.extra]
    wheels = fetch(packages, wheels_folder)
    if names := [name for name in arguments.with_cuda.split(",") if name]:
        cuda = cuda_requirements(names, wheels_folder, wheels)
        wheels += fetch(cuda, wheels_folder)
        packages += cuda
    about = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "commit": git("rev-parse", "HEAD").strip(),
        "gpu": arguments.gpu,
        "packages": {package.name: package.version for package in packages},
    }
    with ExitStack() as stack:
        rules = StripRules.read(arguments.gpu)
        entries = [
            *wheel_entries(stack, wheels, rules),
            *tracked_entries(),
            *distribution_entries(),
            *shape_entries(),
        ]
        blocks = compressed_blocks(
            entries, arguments.work / "blocks", arguments.processes
        )
        manifest = write_parts(
            arguments.out, int(arguments.part_size * 2**20), blocks, about
        )
    shutil.copy(BOOTSTRAP, arguments.out / BOOTSTRAP.name)
    whole = manifest["whole"]
    print(
        f"{len(manifest['parts'])} parts, {whole['size'] / 2**20:.0f} MiB "
        f"({manifest['unpacked_size'] / 2**20:.0f} unpacked)\n"
        f"SHA-256 {whole['sha256']}\n"
        f"carry them with manifest.json and bootstrap.py from {arguments.out}"
    )


def main() -> None:
    try:
        prepare(parse_arguments())
    except PackingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
