# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` on the loopback interface, and vLLM's own client for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

_HOST = "127.0.0.1"
_LOG_TAIL = 3000
# Cold start of the server on a slow machine; the usual is below a minute.
_START_SECONDS = 600
_CLIENT_SECONDS = 1800


class ServerError(RuntimeError):
    """A server did not start, or its client failed; the message ends with the log."""


def vllm_command() -> str:
    """The `vllm` command beside this Python."""
    return str(Path(sys.executable).parent / "vllm")


def free_port() -> int:
    """A port of the loopback interface that was free just now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


class Server:
    """One `vllm serve` process; a context manager that ends it with SIGTERM."""

    def __init__(
        self,
        name: str,
        model: str,
        options: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        self.name = name
        self.model = model
        self.url = f"http://{_HOST}:{free_port()}"
        # Deleted on close; kept open here so that the server can write to it.
        self._log = tempfile.NamedTemporaryFile(  # noqa: SIM115
            prefix=f"{name}-", suffix=".log"
        )
        port = self.url.rsplit(":", 1)[1]
        self._process = subprocess.Popen(
            [vllm_command(), "serve", model, "--host", _HOST, "--port", port, *options],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        """Block until /health answers. ServerError if the server ends before."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(self._epitaph("it ended while starting"))
            try:
                # Our own server, on loopback.
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):  # noqa: S310
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.5)
        raise ServerError(self._epitaph(f"not ready after {_START_SECONDS} s"))

    def benchmark(self, options: Sequence[str]) -> dict[str, Any]:
        """`vllm bench serve` against this server; its JSON result.

        ServerError if the client fails or any request does.
        """
        with tempfile.TemporaryDirectory() as folder:
            command = [
                *(vllm_command(), "bench", "serve", "--backend", "openai-chat"),
                *("--endpoint", "/v1/chat/completions", "--base-url", self.url),
                *("--model", self.model, "--save-result", "--disable-tqdm"),
                *("--result-dir", folder, "--result-filename", "result.json"),
                *options,
            ]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_CLIENT_SECONDS,
                check=False,
            )
            result = Path(folder) / "result.json"
            if done.returncode or not result.exists():
                text = f"vllm bench serve failed:\n{(done.stdout + done.stderr)}"
                raise ServerError(self._epitaph(text[-_LOG_TAIL:]))
            figures: dict[str, Any] = json.loads(result.read_text())
        if figures.get("failed"):
            raise ServerError(self._epitaph(f"{figures['failed']} requests failed"))
        return figures

    def close(self) -> None:
        """End the server as a user would; kill its group if it does not listen."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def _epitaph(self, reason: str) -> str:
        log = Path(self._log.name).read_text(errors="replace")
        return f"server {self.name!r}: {reason}\n{log[-_LOG_TAIL:]}"

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
