# SPDX-License-Identifier: Apache-2.0
"""Triton's compiler for a GPU, on a machine that has none.

The interpreter forgives what the compiler does not (a variable that changes its type in
a loop, say). Compiling needs no GPU: only a driver that says which one to compile for.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

COMPUTE_CAPABILITY = 90
"""Of Hopper GPUs."""


class _Driver:
    """What vLLM and Triton ask of a driver before a kernel is compiled."""

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", COMPUTE_CAPABILITY, 32)


def only_compile() -> list[tuple[str, int]]:
    """Let launches on CPU tensors compile and do no more, in this process.

    It must come before vLLM is imported, and not with the interpreter: Triton does the
    one or the other. Returns where each launch is noted: the kernel's name and the
    bytes of its machine code.
    """
    os.environ.pop("TRITON_INTERPRET", None)
    import triton
    from triton.backends import backends

    # vLLM looks for an active driver; Triton would also ask it for a compiler.
    backends["cpu"] = SimpleNamespace(driver=_Driver, compiler=None)  # type: ignore
    import vllm.triton_utils

    assert vllm.triton_utils.HAS_TRITON
    del backends["cpu"]
    triton.runtime.driver.set_active(_Driver())
    launches: list[tuple[str, int]] = []
    run = triton.runtime.jit.JITFunction.run

    def compile_only(self: Any, *args: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, warmup=True, **kwargs)
        launches.append((self.fn.__name__, len(kernel.asm["cubin"])))

    triton.runtime.jit.JITFunction.run = compile_only
    return launches
