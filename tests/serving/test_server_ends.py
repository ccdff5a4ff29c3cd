# SPDX-License-Identifier: Apache-2.0
"""How `vllm serve` with Medusa ends, and when it does not begin."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import openai
import pytest

from tests.engine.conftest import TinyModel
from tests.serving.support.processes import run_vllm
from tests.serving.support.requests import Ask, answer
from tests.serving.support.server import HOST, NAME, Server, serve

CLIENT_SECONDS = 30.0
"""How long a client waits for the next token: vLLM's HTTP server sometimes waits for
streams, which it no longer answers, until their clients leave."""


def begin_long_answers(server: Server, count: int) -> list[BaseException]:
    """Stream long answers and end the server in their midst; return their errors."""

    async def run() -> list[BaseException]:
        async with server.async_client().with_options(timeout=CLIENT_SECONDS) as client:
            first = asyncio.Event()

            async def read() -> None:
                stream = await client.completions.create(
                    model=NAME,
                    prompt="on and on",
                    max_tokens=3500,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
                async for part in stream:
                    assert part.choices[0].finish_reason is None, "it ended before"
                    first.set()

            tasks = [asyncio.create_task(read()) for _ in range(count)]
            await first.wait()
            server.process.send_signal(signal.SIGTERM)
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            return [error for error in ended if error is not None]

    return asyncio.run(run())


def assert_port_is_free(port: int) -> None:
    """As another server would take it."""
    with socket.socket() as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taker.bind((HOST, port))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port)).close()


def test_sigterm_in_mid_stream(tiny_model: TinyModel, tmp_path: Path) -> None:
    """It ends and leaves nothing. Before that: --disable-log-stats."""
    with serve(
        tiny_model.path,
        f"--speculative-model=medusa:{tiny_model.heads}",
        "--disable-log-stats",
        log=tmp_path / "log",
    ) as server:
        assert len(server.processes()) >= 3  # front end, engine, worker
        reply = server.client().completions.create(
            model=NAME, prompt="short", max_tokens=30
        )
        assert reply.usage is not None and reply.usage.completion_tokens > 0
        names = server.metrics()
        assert not [n for n in names if n.startswith(("vllm:spec", "vllm:medusa"))]
        errors = begin_long_answers(server, 4)
        # Those that notice say so; the others give up.
        assert all(isinstance(e, openai.APIError | OSError) for e in errors), errors
        # As a process manager sends it again to one that takes long: no harm.
        assert server.stop() == 0
        assert_port_is_free(server.port)
        assert "Medusa:" not in server.log_text()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(["--speculative-model=medusa:./nowhere"], "nowhere", id="heads"),
        pytest.param(
            ["--speculative-model=medusa:HEADS?tre=chain"],
            "did you mean",
            id="key",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--speculative-model=medusa:HEADS", "--pipeline-parallel-size=2"],
            "--pipeline-parallel-size 2",
            id="unsupported",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--speculative-model=medusa:HEADS", '--speculative-config={"model": "x"}'],
            "both given",
            id="two ways",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_bad_flag_ends_it_at_start(
    tiny_model: TinyModel, tmp_path: Path, flags: Sequence[str], words: str
) -> None:
    """One clear error, as the last line, before any engine starts."""
    given = [flag.replace("HEADS", str(tiny_model.heads)) for flag in flags]
    ended = run_vllm(
        "serve", tiny_model.path, "--enforce-eager", *given, log=tmp_path / "log"
    )
    assert ended.code != 0
    last = ended.output.strip().splitlines()[-1]
    assert words in last
    assert "EngineCore" not in ended.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("eager", "flags"),
    [
        pytest.param(True, ["--api-server-count=2"], id="two front ends"),
        pytest.param(False, [], id="compiled"),
    ],
)
def test_other_ways_to_start(
    tiny_model: TinyModel,
    plain_server: Server,
    tmp_path: Path,
    eager: bool,
    flags: Sequence[str],
) -> None:
    asks = [Ask.chat(f"Question {n}.", max_tokens=40) for n in range(12)]

    async def ask(server: Server) -> list[list[int]]:
        async with server.async_client() as client:
            found = await asyncio.gather(*(answer(client, a) for a in asks))
        return [own.choices[0].token_ids for own in found]

    with serve(
        tiny_model.path,
        f"--speculative-model=medusa:{tiny_model.heads}",
        *flags,
        eager=eager,
        log=tmp_path / "log",
    ) as server:
        assert asyncio.run(ask(server)) == asyncio.run(ask(plain_server))
        metrics = server.metrics()
        # Those of all front ends add up: each token of the answers, once.
        tokens = metrics["vllm:medusa_tokens_per_step_sum"] + sum(
            value
            for name, value in metrics.items()
            if name.startswith("vllm:medusa_steps_without_tree_total")
        )
        assert tokens == metrics["vllm:generation_tokens_total"] == 12 * 40
        begin_long_answers(server, 4)
        assert server.stop() == 0
        assert_port_is_free(server.port)
