# SPDX-License-Identifier: Apache-2.0
"""The parent's side of one engine in a worker process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.common.variants import Variant

ROOT = Path(__file__).resolve().parents[2]
_LOG_TAIL = 3000
# vLLM's worker polls for this long after its last step before it sleeps; the next
# engine's run must not share the cores with it.
_SETTLE_SECONDS = 1.2


class EngineError(RuntimeError):
    """An engine did not start, or died on a job; the message ends with its log."""


class EngineProcess:
    """An engine that loads in the background and then takes one job at a time.

    `arguments` are those of `LLM`, `environment` is added to this process's own.
    Use as a context manager: leaving it ends the engine and its processes.
    """

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self.start_seconds: float | None = None
        # Deleted on close; kept open here so that the engine can write to it.
        self._log = tempfile.NamedTemporaryFile(  # noqa: SIM115
            prefix=f"{name}-", suffix=".log"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.common.worker"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # Its own group, so that the engine core and workers end with it.
            start_new_session=True,
        )
        self._send(dict(arguments))

    def wait_until_ready(self) -> None:
        """Block until the engine is loaded. EngineError if it is not going to be."""
        if self.start_seconds is None:
            self.start_seconds = self._receive()["start_seconds"]

    def call(self, job: str, **arguments: Any) -> Any:
        """Run a job of `benchmarks.common.worker` and return its result."""
        self.wait_until_ready()
        self._send({"job": job, **arguments})
        result = self._receive()
        time.sleep(_SETTLE_SECONDS)
        return result

    def close(self) -> None:
        """End the engine: close stdin, then kill its group if that is not enough."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise EngineError(self._epitaph("it ended early")) from None

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineError(self._epitaph("it ended without an answer"))
        message = json.loads(line)
        if "error" in message:
            raise EngineError(self._epitaph(message["error"]))
        return message["result"]

    def _epitaph(self, reason: str) -> str:
        log = Path(self._log.name).read_text(errors="replace")
        return f"engine {self.name!r}: {reason}\n{log[-_LOG_TAIL:]}"

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def start_engines(
    stack: ExitStack,
    variants: Sequence[Variant],
    shared: Mapping[str, Any],
    environment: Mapping[str, str],
) -> dict[str, EngineProcess]:
    """One worker process per variant, by its name; they load side by side.

    `shared` are arguments of `LLM` for all. `stack` ends the processes.
    """
    engines = {
        variant.name: stack.enter_context(
            EngineProcess(
                variant.name,
                {**shared, **variant.arguments},
                {**environment, **variant.environment},
            )
        )
        for variant in variants
    }
    for name, engine in engines.items():
        engine.wait_until_ready()
        print(f"{name} loaded in {engine.start_seconds:.0f} s", flush=True)
    return engines
