# SPDX-License-Identifier: Apache-2.0
"""Does the installed vLLM have the functions this plugin was written against?

`patches/<minor version>/hooks.json` lists, per supported vLLM, every function whose
behaviour the plugin changes or relies on, with the SHA-256 of its source.
"""

from __future__ import annotations

import inspect
import json
import linecache
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, cast

from vllm_medusa import __version__
from vllm_medusa.errors import UnsupportedError
from vllm_medusa.function_source import find_functions, read_function, source_hash

ALLOW_UNKNOWN = "VLLM_MEDUSA_ALLOW_UNKNOWN_VLLM"
"""Environment variable: "1" turns the refusal of an unknown vLLM into a warning."""

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was compared: the version ("vllm") or a function by name."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Hook:
    """A function of vLLM that the plugin changes or relies on.

    `name` is "module:function" or "module:Class.method" where it is defined, `through`
    ("module:Class") the subclass that the plugin gets it from, if that is another one:
    it must not define the function itself. `platform` is "any" or the one platform
    where it is used, `runner` "any" or the one model runner ("v1", "v2"), `sha256`
    that of the dedented source.
    """

    name: str
    through: str | None
    platform: str
    sha256: str
    runner: str = "any"

    def is_used(self, platform: str, runner: str) -> bool:
        """Whether an engine on this platform and runner needs the function."""
        return self.platform in ("any", platform) and self.runner in ("any", runner)


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """What hooks.json holds: a version of vLLM and its functions."""

    version: str
    hooks: tuple[Hook, ...]


def check() -> list[Finding]:
    """Compare the installed vLLM with the one the plugin knows for its version.

    The first finding is the version. If it is not supported it is the only one, else
    one per function follows that this platform and its model runner use. Functions
    of modules that are loaded are taken as they are, so that changes by other plugins
    are found; the others are read from vLLM's files. Takes some 10 ms.
    """
    import vllm

    minor = minor_version(vllm.__version__)
    known = known_versions()
    if minor not in known:
        return [Finding("vllm", False, f"{vllm.__version__} is not supported")]
    version = known[minor]
    detail = f"{vllm.__version__}, compared with {version.version}"
    root = Path(cast(str, vllm.__file__)).parent.parent
    return [
        Finding("vllm", True, detail),
        *_compare(version, root, sys.modules, _platform(), _runner()),
    ]


def require() -> None:
    """Refuse a vLLM that differs from the one the plugin was written against.

    Raises:
        UnsupportedError: naming the versions and the first functions that differ,
            unless VLLM_MEDUSA_ALLOW_UNKNOWN_VLLM=1, which makes it a warning.
    """
    failed = [finding for finding in check() if not finding.ok]
    if not failed:
        return
    supported = ", ".join(version.version for version in known_versions().values())
    problem = (
        f"{_describe(failed)} vllm-medusa {__version__} supports vLLM {supported}: "
        "install one of these"
    )
    if os.environ.get(ALLOW_UNKNOWN) != "1":
        raise UnsupportedError(
            f"{problem}, or set {ALLOW_UNKNOWN}=1 to try this one at your own risk"
        )
    from vllm.logger import init_logger

    init_logger("vllm.medusa").warning_once(
        "%s. Going on because of %s=1: the text may be wrong.", problem, ALLOW_UNKNOWN
    )


@cache
def known_versions() -> Mapping[str, KnownVersion]:
    """Return what each supported minor version of vLLM ("0.32") looks like.

    Raises:
        UnsupportedError: the installation lacks its list of functions.
    """
    files = sorted(patches_folder().glob("*/hooks.json"))
    if not files:
        raise UnsupportedError(
            f"{patches_folder()} has no hooks.json: this installation of vllm-medusa "
            "is incomplete, install it again"
        )
    return {file.parent.name: read_hooks(file) for file in files}


def minor_version(version: str) -> str:
    """Return "0.32" of "0.32.1+cpu", the key of `known_versions`."""
    found = re.match(r"\d+\.\d+", version)
    return found[0] if found else version


def patches_folder() -> Path:
    """Return where patches/ lies: in the wheel inside the package, else beside it."""
    package = Path(__file__).parent
    inside = package / "patches"
    return inside if inside.is_dir() else package.parent / "patches"


def read_hooks(file: Path) -> KnownVersion:
    """Read one hooks.json."""
    content = json.loads(file.read_text())
    hooks = tuple(
        Hook(
            name,
            entry.get("through"),
            entry["platform"],
            entry["sha256"],
            entry.get("runner", "any"),
        )
        for name, entry in content["functions"].items()
    )
    return KnownVersion(content["vllm"], hooks)


def _compare(
    version: KnownVersion,
    root: Path,
    modules: Mapping[str, Any],
    platform: str,
    runner: str,
) -> Iterator[Finding]:
    for hook in version.hooks:
        if not hook.is_used(platform, runner):
            continue
        problem = _difference(hook, root, modules)
        if problem is None:
            detail = f"as in vLLM {version.version}"
        else:
            detail = f"{problem} vLLM {version.version}"
        yield Finding(hook.name, problem is None, detail)


def _difference(hook: Hook, root: Path, modules: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a function, to be followed by "vLLM 0.32.0"."""
    module = (hook.through or hook.name).partition(":")[0]
    if module in modules:
        function = _loaded_function(hook, modules)
        if function is None:
            return "is missing, unlike in"
        place = f"{function.__module__}:{function.__qualname__}"
        if place != hook.name:
            return f"is replaced by {place}, unlike in"
        source = _loaded_source(function)
    else:
        source = written_source(root, hook.name, hook.through)
    if source is None:
        return "is not defined where it was, unlike in"
    return None if source_hash(source) == hook.sha256 else "is not that of"


def _loaded_function(hook: Hook, modules: Mapping[str, Any]) -> FunctionType | None:
    """Return the function that a caller of vLLM would get now.

    Wrappers made with functools.wraps, ours among them, are looked through, and so
    are Triton's.
    """
    *owner, name = hook.name.partition(":")[2].split(".")
    target = modules[(hook.through or hook.name).partition(":")[0]]
    if owner:
        cls = hook.through.partition(":")[2] if hook.through else owner[0]
        target = getattr(target, cls, None)
    function: Any = inspect.unwrap(getattr(target, name, None))  # type: ignore[arg-type]
    for inner in ("__func__", "fn"):
        function = getattr(function, inner, function)
    return function if isinstance(function, FunctionType) else None


def _loaded_source(function: FunctionType) -> str | None:
    """Return the source of an imported function; None if its file is not there."""
    code = function.__code__
    lines = linecache.getlines(code.co_filename)
    return read_function(lines, code.co_firstlineno - 1) if lines else None


def written_source(root: Path, name: str, through: str | None = None) -> str | None:
    """Return a function's source from the files of a vLLM that is not imported.

    `root` is the folder that holds the package `vllm`; `name` and `through` are those
    of `Hook`. None if the function is not defined there, or `through` has its own.
    """
    module, _, qualname = name.partition(":")
    if through is not None:
        module_of_through, _, cls = through.partition(":")
        _, functions = _read_module(root, module_of_through)
        if f"{cls}.{qualname.rpartition('.')[2]}" in functions:
            return None
    lines, functions = _read_module(root, module)
    return read_function(lines, functions[qualname]) if qualname in functions else None


@cache
def _read_module(root: Path, module: str) -> tuple[Sequence[str], Mapping[str, int]]:
    lines = linecache.getlines(str(module_file(root, module)))
    return lines, find_functions(lines)


def module_file(root: Path, module: str) -> Path:
    """Return the file of a module below `root`, the folder of its top package."""
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _describe(failed: Sequence[Finding]) -> str:
    if failed[0].name == "vllm":
        return f"vLLM {failed[0].detail}."
    named = "; ".join(
        f"{finding.name} {finding.detail}" for finding in failed[:_MOST_NAMED]
    )
    rest = len(failed) - _MOST_NAMED
    more = f"; and {rest} more" if rest > 0 else ""
    return f"This vLLM was changed: {named}{more}."


def _platform() -> str:
    from vllm.platforms import current_platform

    return "cpu" if current_platform.is_cpu() else current_platform.device_type


def _runner() -> str:
    """Return the model runner that vLLM takes here, if Medusa is all it asks about."""
    from vllm import envs
    from vllm.triton_utils import HAS_TRITON

    asked = envs.VLLM_USE_V2_MODEL_RUNNER
    return "v2" if (HAS_TRITON if asked is None else asked) else "v1"
