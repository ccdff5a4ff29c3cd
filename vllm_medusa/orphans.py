# SPDX-License-Identifier: Apache-2.0
"""An engine that ends when the server that it belongs to has been killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait

ENGINE_CORE = "EngineCore"
"""How vLLM names the process of an engine's core (`vllm.v1.engine.utils`)."""


def end_with_parent() -> None:
    """End this process, as by SIGTERM, with its parent if it is an engine's core.

    vLLM's worker processes notice when the core ends, but the core does not notice when
    the server is killed: it would keep the device's memory, and the server could not
    start again. Does nothing in other processes and where the core has no parent.
    """
    parent = multiprocessing.parent_process()
    if parent is None or ENGINE_CORE not in multiprocessing.current_process().name:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="medusa-parent-watch", daemon=True).start()
