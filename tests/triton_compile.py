# SPDX-License-Identifier: Apache-2.0
"""Compile Triton kernels for GPUs on a machine that has none.

The interpreter runs a kernel's Python source with NumPy: it proves the arithmetic, not
that Triton's compiler takes the source, nor that a launch fits a GPU. But the compiler
itself needs no GPU, only a target: the package triton brings LLVM, NVIDIA's assembler
(ptxas) and cuobjdump. After `only_compile` a launch, made by the code that makes it in
earnest and with CPU tensors for those of a GPU, goes all the way to machine code and
stops there. That needs a process of its own, since a process that has imported Triton
either interprets or compiles: `python -m` a module that calls `only_compile` first.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel compiled for one launch, and what a program of it takes."""

    kernel: str
    shared_bytes: int
    registers: int
    """Of each thread, 255 at most."""
    spilled_bytes: int
    """Of each thread's stack: what did not fit the registers."""


def only_compile(capability: int) -> list[Launch]:
    """Let launches compile for a GPU (80: A100, 89: L4, 90: H100) and no more.

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
