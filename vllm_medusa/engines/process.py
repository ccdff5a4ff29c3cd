# SPDX-License-Identifier: Apache-2.0
"""The parent's side of one vLLM engine in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vllm_medusa.errors import MedusaError

# An engine polls for about a second after its last step; the next one must not share
# the cores with it while it is timed.
SETTLE_SECONDS = 1.2
_LOG_LINES = 25
_EXIT_SECONDS = 30


class EngineError(MedusaError):
    """An engine refused its arguments (the message is its own), did not start, or
    died (the message ends with the end of its log)."""


class EngineProcess:
    """An engine that loads in the background and then takes one job at a time.

    A context manager: leaving it ends the engine with all its processes.

    Args:
        name: for messages.
        worker: module to run, whose main is `vllm_medusa.engines.jobs.serve`.
        arguments: those of `vllm.LLM`.
        environment: added to this process's own.
        log: file for what vLLM prints.
        folder: to run in; this process's own by default.
    """

    def __init__(
        self,
        name: str,
        worker: str,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str],
        log: Path,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", worker],
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                # A group of its own, so that vLLM's processes end with it.
                start_new_session=True,
            )
        self._send(arguments)

    def wait_until_ready(self) -> float:
        """Block until the engine is loaded; return the seconds it took to load.

        Raises:
            EngineError: the engine is not going to answer.
        """
        return float(self._receive()["seconds"])

    def call(self, job: str, *, settle: bool = True, **arguments: Any) -> Any:
        """Run a job of the worker module and return its result.

        With `settle`, only once the engine has come to rest: needed before another
        engine is timed.

        Raises:
            EngineError: the job failed, or the engine ended.
        """
        self._send({"job": job, **arguments})
        result = self._receive()
        if settle:
            time.sleep(SETTLE_SECONDS)
        return result

    def finish(self) -> None:
        """Let the engine shut down; leaving the context waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("ended early") from None

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure("ended without an answer")
        message: dict[str, Any] = json.loads(line)
        if "refusal" in message:
            raise EngineError(message["refusal"])
        if "error" in message:
            raise self._failure(f"failed with {message['error']}")
        return message["result"]

    def _failure(self, reason: str) -> EngineError:
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return EngineError(
            f"the engine {self.name!r} {reason}; the end of {self._log}:\n"
            + "\n".join(lines)
        )

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            # An engine that is still loading would notice the closed pipe only later.
            self._process.wait(timeout=_EXIT_SECONDS if kind is None else 0.5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
