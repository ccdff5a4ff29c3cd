# SPDX-License-Identifier: Apache-2.0
"""The `vllm.general_plugins` entry point.

vLLM calls `register` in the API server, the engine core, every worker and the
model-inspection subprocess. All of them may do so more than once.
"""

from __future__ import annotations

_registered = False


def register() -> None:
    """Teach vLLM the `--speculative-model` flag and `method: medusa`.

    Idempotent. Nothing changes for an engine that does not ask for Medusa.
    """
    global _registered
    if _registered:
        return
    _registered = True
    from vllm_medusa import (
        arguments,
        request_validation,
        structured_output,
        vllm_config,
    )
    from vllm_medusa.metrics import stat_logger, transport

    arguments.install()
    request_validation.install()
    structured_output.install()
    vllm_config.install()
    transport.install()
    stat_logger.install()
