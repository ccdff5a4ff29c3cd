# SPDX-License-Identifier: Apache-2.0
"""A real `vllm serve` on loopback.

with serve(model, f"--speculative-model=medusa:{heads}", log=folder / "log") as s:
    s.client().completions.create(model=s.model, prompt="a", max_tokens=8)
    assert s.stop() == 0
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.support.processes import (
    VLLM,
    kill_all,
    members,
    start,
    tail,
    wait_for_end_of_all,
)

HOST = "127.0.0.1"
NAME = "tiny"
"""The served name of every model, whatever its folder."""
MAX_MODEL_LEN = 4096
"""Long enough for answers that still run when they are cancelled."""
ARGUMENTS = {
    "--host": HOST,
    "--served-model-name": NAME,
    "--dtype": "float32",
    "--max-model-len": str(MAX_MODEL_LEN),
    "--block-size": "32",
    "--max-num-seqs": "16",
    "--max-num-batched-tokens": "2048",
    "--kv-cache-memory-bytes": str(64 << 20),
    "--generation-config": "vllm",
}
"""Given to every server, unless `serve` is given the same option."""
READY_SECONDS = 600.0
"""Most of a start is three imports of vLLM in turn, by 25 s of processor time."""
END_SECONDS = 60.0
ANSWER_SECONDS = 180.0


class Server:
    """A running server.

    Attributes:
        port: of loopback.
        url: without "/v1".
        model: the name under which requests ask for it.
        log: the file with everything that all its processes wrote.
        process: its first process, which also is the id of its session.
        ready_seconds: how long it took to start.
    """

    model = NAME

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://{HOST}:{port}"
        self.log = log
        self.ready_seconds = 0.0
        # Loopback needs neither certificates, which take long to load, nor a proxy.
        self._http = httpx.Client(
            base_url=self.url, timeout=ANSWER_SECONDS, verify=False, trust_env=False
        )

    def client(self) -> openai.OpenAI:
        """Return a client that tries once."""
        return openai.OpenAI(
            base_url=self.url + "/v1",
            api_key="none",
            max_retries=0,
            timeout=ANSWER_SECONDS,
            http_client=openai.DefaultHttpxClient(verify=False, trust_env=False),
        )

    def async_client(self) -> openai.AsyncOpenAI:
        """Return such a client for asyncio."""
        return openai.AsyncOpenAI(
            base_url=self.url + "/v1",
            api_key="none",
            max_retries=0,
            timeout=ANSWER_SECONDS,
            http_client=openai.DefaultAsyncHttpxClient(verify=False, trust_env=False),
        )

    def get(self, path: str) -> httpx.Response:
        """GET a path such as "/health"."""
        return self._http.get(path)

    def post(self, path: str, body: Any) -> httpx.Response:
        """POST JSON; text and bytes are sent as they are."""
        if isinstance(body, str | bytes):
            headers = {"content-type": "application/json"}
            return self._http.post(path, content=body, headers=headers)
        return self._http.post(path, json=body)

    def metrics(self) -> dict[str, float]:
        """/metrics: the sum over engines of each sample, by its name; with a label
        other than vLLM's two own, `name{label="value"}`."""
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                labels = ",".join(
                    f'{key}="{value}"'
                    for key, value in sorted(sample.labels.items())
                    if key not in ("engine", "model_name")
                )
                name = f"{sample.name}{{{labels}}}" if labels else sample.name
                values[name] = values.get(name, 0.0) + sample.value
        return values

    def wait_for_metric(self, name: str, value: float, seconds: float = 30.0) -> None:
        """Wait until a metric has a value: counters follow the answers by a moment.

        Raises:
            AssertionError: it has another one after so many seconds.
        """
        end = time.monotonic() + seconds
        while (found := self.metrics().get(name)) != value:
            assert time.monotonic() < end, f"{name} is {found}, not {value}"
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """Return all living processes of the server, the first one included."""
        return members(self.process.pid)

    def log_text(self) -> str:
        """Return everything that was logged so far."""
        return self.log.read_text(errors="replace")

    def stop(self, sent: int = signal.SIGTERM, seconds: float = END_SECONDS) -> int:
        """Signal the first process, wait for all; return its exit code.

        Raises:
            AssertionError: a process is left after `seconds`; the context manager
                kills it.
        """
        self.process.send_signal(sent)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the server still runs {seconds} s after signal {sent}:\n"
                + tail(self.log)
            ) from None
        left = wait_for_end_of_all(self.process.pid)
        assert not left, f"the server left {left} behind:\n{tail(self.log)}"
        return code

    def wait_until_ready(self, seconds: float) -> None:
        """Wait for /health.

        Raises:
            AssertionError: the server ended, or is not ready in time.
        """
        started = time.monotonic()
        while not self._is_healthy():
            code = self.process.poll()
            assert code is None, (
                f"the server ended with {code} before it was ready:\n{tail(self.log)}"
            )
            assert time.monotonic() - started < seconds, (
                f"the server is not ready after {seconds} s:\n{tail(self.log)}"
            )
            time.sleep(0.2)
        self.ready_seconds = time.monotonic() - started

    def _is_healthy(self) -> bool:
        try:
            # A connection that comes too early may be accepted and forgotten.
            reply = self._http.get("/health", timeout=5.0)
            return reply.status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


@contextmanager
def serve(
    model: str | Path,
    *arguments: str | Path,
    log: Path,
    eager: bool = True,
    environment: Mapping[str, str | None] | None = None,
    command: tuple[str, ...] = (str(VLLM), "serve"),
    ready_seconds: float = READY_SECONDS,
) -> Iterator[Server]:
    """Run a server for the block, ready when the block starts; kill what it leaves.

    `arguments` come after `ARGUMENTS` and --enforce-eager (unless `eager` is False);
    an option that is given as "--name=value" or "--name" replaces the default one.
    `environment` changes the environment; None removes a variable. `command` takes
    the model first.

    Raises:
        AssertionError: it does not start; the message has the end of the log.
    """
    given = [str(argument) for argument in arguments]
    names = {argument.partition("=")[0] for argument in given}
    defaults = [f"{k}={v}" for k, v in ARGUMENTS.items() if k not in names]
    if eager:
        defaults.append("--enforce-eager")
    # Bound, this socket keeps the port from everyone but a server that listens.
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((HOST, 0))
        port = holder.getsockname()[1]
        process = start(
            [*command, str(model), f"--port={port}", *defaults, *given],
            log,
            environment,
        )
        server = Server(process, port, log)
        try:
            server.wait_until_ready(ready_seconds)
            yield server
        finally:
            try:
                if process.poll() is None:
                    process.terminate()
                    process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            finally:
                kill_all(process.pid)
                process.wait()
