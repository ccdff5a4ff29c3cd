# SPDX-License-Identifier: Apache-2.0
"""Wheels: fetched with pip, read without being installed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile, ZipInfo

from packaging.version import Version

from benchmarks.gpu.packing.errors import PackingError
from benchmarks.gpu.packing.strip import StripRules

PACKAGES_FOLDER = Path(__file__).parents[1] / "packages"
_PYTHON = "3.12"
# Of a wheel's name.data folder, what belongs where in a folder on the module path.
_DATA_FOLDERS = {"purelib": "", "platlib": "", "data": "", "scripts": "bin/"}
_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(===?)\s*([\w.!+-]+)")


@dataclass(frozen=True)
class Requirement:
    """A pinned package: `name` normalised as PEP 503 has it."""

    name: str
    version: str
    text: str

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read `name==version` or `name===version`.

        Raises:
            PackingError: it is anything else.
        """
        match = _REQUIREMENT.fullmatch(text.strip())
        if match is None:
            raise PackingError(f"{text!r} is no pinned package: write NAME==VERSION")
        return cls(normalise(match[1]), match[3], text.strip())


def normalise(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def supported_versions(folder: Path = PACKAGES_FOLDER) -> list[str]:
    """The versions of vLLM that there is a list for."""
    return sorted(path.stem for path in folder.glob("[0-9]*.txt"))


def read_packages(vllm: str, folder: Path = PACKAGES_FOLDER) -> list[Requirement]:
    """All packages for a version of vLLM, itself included.

    Raises:
        PackingError: there is no list for it, or a line is not `name==version`.
    """
    if vllm not in supported_versions(folder):
        raise PackingError(
            f"no list of packages for vLLM {vllm}: there is one for "
            f"{', '.join(supported_versions(folder))}"
        )
    requirements = []
    for name in (f"{vllm}.txt", "common.txt"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            if line := line.split("#", 1)[0].strip():
                requirements.append(Requirement.parse(line))
    return requirements


def find_wheel(folder: Path, requirement: Requirement) -> Path | None:
    """The wheel of `requirement` in `folder`, if it is there."""
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        # 13.0.3 and 13.0.3.0 are one version; a local one such as 2.0+cpu is another
        # build, never the one asked for.
        same = normalise(name) == requirement.name
        if same and Version(version) == Version(requirement.version):
            return path
    return None


def pip_command(requirements: Sequence[Requirement], folder: Path) -> list[str]:
    """`pip download` for an x86-64 Linux with glibc 2.34 and Python 3.12.

    pip matches platforms literally, so all that such a machine can run are named.
    Nearly all wheels are for 2.28 or less; llguidance's is for 2.31.
    """
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(34, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    options = [f"--platform={platform}" for platform in platforms]
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
        *("--disable-pip-version-check", "--only-binary=:all:"),
        *(f"--python-version={_PYTHON}", "--implementation=cp", *options),
        *("--dest", str(folder), *(r.text for r in requirements)),
    ]


def fetch(requirements: Sequence[Requirement], folder: Path) -> list[Path]:
    """The wheels of `requirements`; those already in `folder` are not fetched again.

    Raises:
        PackingError: pip found no fitting wheel, or a file is no whole wheel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [r for r in requirements if find_wheel(folder, r) is None]
    # One at a time: a long download cut short then costs only itself.
    for requirement in missing:
        print(f"fetching {requirement.text}", flush=True)
        done = subprocess.run(
            pip_command([requirement], folder), capture_output=True, text=True
        )
        if done.returncode:
            raise PackingError(f"{requirement.text}:\n{done.stderr.strip()}")
    wheels = []
    for requirement in requirements:
        wheel = find_wheel(folder, requirement)
        if wheel is None:
            raise PackingError(
                f"pip fetched another build than {requirement.text}; it must be the "
                "one from PyPI, not one of an index with CPU builds"
            )
        wheels.append(wheel)
    return wheels


def open_wheel(path: Path) -> ZipFile:
    """The wheel as a zip file.

    Raises:
        PackingError: it is cut short or no zip file.
    """
    try:
        return ZipFile(path)
    except (BadZipFile, OSError) as error:
        raise PackingError(f"{path} is no whole wheel ({error}): delete it") from None


def metadata_lines(path: Path, key: str) -> list[str]:
    """Values of `key` in the wheel's METADATA, such as all of "Requires-Dist"."""
    with open_wheel(path) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        text = wheel.read(name).decode("utf-8")
    head = text.split("\n\n", 1)[0]
    prefix = f"{key}: "
    return [line.removeprefix(prefix) for line in head.split("\n") if prefix in line]


def installed_name(name: str) -> str | None:
    """Where a wheel's file goes in a folder on the module path; None: nowhere."""
    top, _, rest = name.partition("/")
    if not top.endswith(".data"):
        return name
    kind, _, rest = rest.partition("/")
    return None if kind not in _DATA_FOLDERS else _DATA_FOLDERS[kind] + rest


def kept_files(wheel: ZipFile, rules: StripRules) -> Iterator[tuple[str, ZipInfo]]:
    """(installed name, entry) of each file that is not stripped."""
    for info in wheel.infolist():
        name = installed_name(info.filename)
        if name and not info.is_dir() and not rules.removes(name):
            yield name, info


def cuda_requirements(
    names: Iterable[str], folder: Path, wheels: Sequence[Path]
) -> list[Requirement]:
    """The CUDA libraries `names` (cudnn, nccl, cublas, …) in the versions torch pins.

    `wheels` has torch's among them; that of cuda-toolkit, which lists the libraries
    of the toolkit by name, is fetched into `folder`.

    Raises:
        PackingError: torch pins no library of that name.
    """
    torch = next(wheel for wheel in wheels if wheel.name.startswith("torch-"))
    needs = [
        need.split(";")[0].strip() for need in metadata_lines(torch, "Requires-Dist")
    ]
    toolkit = next(n for n in needs if n.startswith("cuda-toolkit"))
    pinned = Requirement.parse(re.sub(r"\[.*\]", "", toolkit))
    (toolkit_wheel,) = fetch([pinned], folder)
    found: dict[str, list[str]] = {}
    for need in needs:
        if match := re.fullmatch(r"nvidia-([\w-]+?)-cu\d+==[\w.]+", need):
            found[match[1]] = [need]
    for line in metadata_lines(toolkit_wheel, "Requires-Dist"):
        need, _, marker = line.partition(";")
        match = re.search(r"""extra == ['"]([\w-]+)['"]""", marker)
        if match and match[1] != "all":
            found.setdefault(match[1], []).append(_pin(need.strip()))
    unknown = sorted(set(names) - set(found))
    if unknown:
        raise PackingError(
            f"torch pins no CUDA library {', '.join(unknown)}: there are "
            f"{', '.join(sorted(found))}"
        )
    pinned_texts = dict.fromkeys(text for name in names for text in found[name])
    return [Requirement.parse(text) for text in pinned_texts]


def _pin(need: str) -> str:
    """One version of a need such as `a==1.2.*` or `a<14,>=13.0`: the lowest."""
    match = re.fullmatch(r"([\w-]+)(?:<[\w.]+,)?(?:==|>=)([\w.]+?)(?:\.\*)?", need)
    return need if match is None else f"{match[1]}=={match[2]}"
