# SPDX-License-Identifier: Apache-2.0
"""Processes of a server that are killed: what its clients see, and what is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.engine.conftest import TinyModel, make_tiny_model
from tests.robustness.support.small_disk import contents
from tests.serving.support.processes import kill_all, start, wait_for_end_of_all
from tests.serving.support.server import (
    MAX_MODEL_LEN,
    READY_SECONDS,
    Server,
    serve,
)

# An orphan notices that its parent has gone; a slow machine takes its time.
GONE_SECONDS = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    folder = tmp_path_factory.mktemp("killed")
    return make_tiny_model("llama", folder, max_position_embeddings=MAX_MODEL_LEN)


def text(server: Server) -> str:
    answer = server.client().completions.create(
        model=server.model, prompt="once", max_tokens=16, temperature=0
    )
    return answer.choices[0].text


def stream(server: Server) -> Iterator[str]:
    """A long answer as it comes, after its first piece."""
    chunks = server.client().completions.create(
        model=server.model,
        prompt="once",
        max_tokens=MAX_MODEL_LEN - 100,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    pieces = (chunk.choices[0].text for chunk in chunks)
    next(pieces)
    return pieces


def process(server: Server, name: str) -> psutil.Process:
    """The process that vLLM calls by `name`."""
    (found,) = (p for p in server.processes() if name in " ".join(p.cmdline()))
    return found


def assert_gone(server: Server) -> None:
    left = wait_for_end_of_all(server.process.pid, GONE_SECONDS)
    assert not left, f"{left} outlived the server:\n{server.log_text()[-4000:]}"


@pytest.mark.slow
def test_killed_worker(model: TinyModel, tmp_path: Path) -> None:
    """A client in mid-stream gets an error, the server ends by itself, all of it."""
    heads = f"--speculative-model=medusa:{model.heads}"
    with serve(model.path, heads, log=tmp_path / "log") as server:
        pieces = stream(server)
        process(server, "VLLM::Worker").send_signal(signal.SIGKILL)
        # vLLM tells it in the stream, or the connection ends with the server.
        with pytest.raises((openai.APIError, httpx.TransportError)):
            for _ in pieces:
                pass
        code = server.process.wait(GONE_SECONDS)
        assert_gone(server)
        assert "EngineDeadError" in server.log_text()
        assert code in (0, 1)


def test_killed_server_starts_again(model: TinyModel, tmp_path: Path) -> None:
    """No process is left, the port is free, no file has changed; the text is the
    same."""
    heads = f"--speculative-model=medusa:{model.heads}"
    folder = model.path.parent
    with serve(model.path, heads, log=tmp_path / "log") as server:
        expected, before = text(server), contents(folder)
        pieces = stream(server)
        server.process.send_signal(signal.SIGKILL)
        with pytest.raises((openai.APIError, httpx.TransportError)):
            for _ in pieces:
                pass
        server.process.wait()
        assert_gone(server)
        assert contents(folder) == before

        again = start(list(server.process.args), tmp_path / "again.log")
        try:
            second = Server(again, server.port, tmp_path / "again.log")
            second.wait_until_ready(READY_SECONDS)
            assert text(second) == expected
            # The engine's core is killed this time.
            process(second, "VLLM::EngineCore").send_signal(signal.SIGKILL)
            end = time.monotonic() + GONE_SECONDS
            while again.poll() is None and time.monotonic() < end:
                with suppress(httpx.TransportError):
                    assert second.get("/health").status_code in (200, 500, 503)
                time.sleep(0.2)
            assert again.poll() is not None
            assert_gone(second)
        finally:
            kill_all(again.pid)
