# SPDX-License-Identifier: Apache-2.0
"""Compile Triton kernels for GPUs on a machine that has none.

The interpreter runs a kernel's Python source with NumPy: it proves the arithmetic, not
that Triton's compiler takes the source, nor that a launch fits a GPU. But the compiler
itself needs no GPU, only a target: the package triton brings LLVM, NVIDIA's assembler
(ptxas) and cuobjdump. After `only_compile` a launch, made by the code that makes it in
earnest and with CPU tensors for those of a GPU, goes all the way to machine code and
stops there. That needs a process of its own, since a process that has imported Triton
either interprets or compiles: `compiled` runs a module there whose last line is
`main(launch_everything)`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel compiled for one launch, and what a program of it takes."""

    kernel: str
    shared_bytes: int
    registers: int
    """Of each thread, 255 at most."""
    spilled_bytes: int
    """Of each thread's stack: what did not fit the registers."""


def compiled(module: str, capability: int, cache: Path) -> list[Launch]:
    """Run `module` in a process of its own; return what it launched.

    `capability` is 80 for an A100, 89 for an L4, 90 for an H100. `cache` is an empty
    folder: what was compiled before must not count.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, str(capability)],
        cwd=_ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Launch(**launch) for launch in json.loads(done.stdout.splitlines()[-1])]


def main(launch_everything: Callable[[int], None]) -> None:
    """Call `launch_everything(capability)`, with the capability of the command line,
    and print its launches as JSON."""
    capability = int(sys.argv[1])
    launches = only_compile(capability)
    launch_everything(capability)
    print(json.dumps([asdict(launch) for launch in launches]))


def only_compile(capability: int) -> list[Launch]:
    """Let launches compile for a GPU and no more.

    Call it before vLLM is imported. Returns the list where launches are noted.
    """
    os.environ.pop("TRITON_INTERPRET", None)
    import triton
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", capability, 32)

    # vLLM hides Triton unless a driver is active; Triton would ask for its compiler.
    backends["cpu"] = SimpleNamespace(driver=Driver, compiler=None)
    import vllm.triton_utils  # noqa: F401

    del backends["cpu"]
    triton.runtime.driver.set_active(Driver())
    launches: list[Launch] = []
    run = triton.runtime.jit.JITFunction.run

    def compile_only(self: Any, *args: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, warmup=True, **kwargs)
        used = _usage(kernel.asm["cubin"])
        shared = kernel.metadata.shared
        launches.append(Launch(self.__name__, shared, used["REG"], used["STACK"]))

    triton.runtime.jit.JITFunction.run = compile_only
    return launches


def _usage(cubin: bytes) -> dict[str, int]:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", printed)}
