# SPDX-License-Identifier: Apache-2.0
"""Model Runner V2 and Triton kernels on a CPU, through Triton's interpreter.

V2 needs Triton, and the package triton has no back end for a CPU: vLLM finds none that
is active, switches Triton off, and with it V2. Triton's interpreter needs no back end:
it runs a kernel's Python source with NumPy, program by program, on CPU tensors. So a
stand-in back end, which is never asked to compile anything, is all that vLLM lacks to
run the same runner and the same kernels as on a GPU.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

ENVIRONMENT = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}


class _Driver:
    """What vLLM and Triton ask of a back end's driver before they use it."""

    @staticmethod
    def is_active() -> bool:
        return True


class _Backend:
    driver = _Driver
    compiler = None


def install() -> None:
    """Switch this process to the interpreter and to V2; before vLLM is imported."""
    os.environ.update(ENVIRONMENT)
    from triton.backends import backends

    backends["cpu"] = _Backend  # type: ignore[assignment]
    _speed_up()


def _speed_up() -> None:
    """Halve the time of a step, with the same results.

    The interpreter replaces the functions of triton.language while a kernel runs, and
    does so again at every call of a function inside of it; once is enough. And it
    checks integer sums for overflow, which Triton's compiler does in debug mode only.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    builder, once = interpreter.interpreter_builder, interpreter._patch_lang
    builder.options = replace(builder.options, sanitize_overflow=False)
    # What a kernel's module may have imported of the language.
    module = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    patched: list[Any] = []

    class Scope:
        """The outermost call restores, as the interpreter asks of its own scope."""

        def __init__(self) -> None:
            self.is_outermost = not patched
            if self.is_outermost:
                patched.append(once(module))

        def restore(self) -> None:
            if self.is_outermost:
                patched.pop().restore()

    interpreter._patch_lang = lambda function: Scope()


def is_installed() -> bool:
    """Tell whether `install` was called in this process."""
    triton = sys.modules.get("triton.backends")
    return triton is not None and triton.backends.get("cpu") is _Backend


def adapt_vllm() -> None:
    """What V2 on a CPU still lacks to run as on a GPU; once vLLM is imported.

    Harmless when done again.
    """
    _route_top_k_top_p()
    _keep_async_scheduling()


def _route_top_k_top_p() -> None:
    """Let vLLM's PyTorch function do what its Triton kernel for top-k and top-p does.

    Of the kernels that a CPU run of V2 reaches, this is the only one that the
    interpreter can't run: it takes a Python int for a tensor. The sampler reaches it
    through this one name, in vLLM 0.32 and 0.33.
    """
    from vllm.v1.sample.ops import topk_topp_sampler

    def apply(logits: Any, k: Any, p: Any, **_: Any) -> Any:
        return topk_topp_sampler.apply_top_k_top_p_pytorch(
            logits, k, p, allow_cpu_sync=True
        )

    topk_topp_sampler.apply_top_k_top_p_triton = apply


def _keep_async_scheduling() -> None:
    """Keep the scheduler that a GPU would have.

    vLLM's CPU platform switches async scheduling off because a CPU gains nothing by
    it. Engine, scheduler and V2 work with it all the same: the next step is scheduled
    before the host knows what this one accepted, which is what must be tested.
    """
    from vllm.platforms import current_platform

    platform = type(current_platform)
    original = platform.check_and_update_config.__func__
    if getattr(original, "keeps_async_scheduling", False):
        return

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        asked = vllm_config.scheduler_config.async_scheduling
        original(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = asked

    check_and_update_config.keeps_async_scheduling = True  # type: ignore[attr-defined]
    platform.check_and_update_config = classmethod(check_and_update_config)
