# SPDX-License-Identifier: Apache-2.0
"""A server on Model Runner V2, scheduled asynchronously as on a GPU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, token_ids
from tests.serving.support import interpreted
from tests.serving.support.requests import Answer, Ask, answer
from tests.serving.support.server import MAX_MODEL_LEN, Server, serve

pytestmark = pytest.mark.interpreter

PROMPTS = [[5, 80, 91], [60, 61, 62, 63, 64, 65, 66]]
LENGTH = 16


def ask_and_leave(server: Server) -> list[Answer]:
    """Stream answers while a client goes away in the midst of its own."""

    async def run() -> list[Answer]:
        async with server.async_client() as client:
            long = Ask.completion("on and on", max_tokens=3000)
            left = asyncio.create_task(answer(client, long, stream=True))
            while (await asyncio.to_thread(server.metrics))[
                "vllm:generation_tokens_total"
            ] < 3:
                await asyncio.sleep(0.1)
            asks = [Ask.completion(prompt, max_tokens=LENGTH) for prompt in PROMPTS]
            answers = asyncio.gather(*(answer(client, a, stream=True) for a in asks))
            await asyncio.sleep(0.5)
            left.cancel()
            return list(await answers)

    return asyncio.run(run())


def test_streams_cancellation_and_metrics(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    with engine(tiny_model.path, max_model_len=MAX_MODEL_LEN) as plain:
        expected = token_ids(generate(plain, PROMPTS, greedy(LENGTH)))
    with serve(
        tiny_model.path,
        f"--speculative-model=medusa:{tiny_model.heads}?tree=optimal:8",
        "--async-scheduling",
        "--distributed-executor-backend=uni",
        environment=interpreted.environment(tmp_path / "site"),
        log=tmp_path / "log",
    ) as server:
        assert "MedusaAsyncScheduler" in server.log_text()
        assert "Using V2 Model Runner" in server.log_text()
        answers = ask_and_leave(server)
        for found, tokens in zip(answers, expected, strict=True):
            assert found.choices[0].token_ids == tokens
            assert found.completion_tokens == LENGTH
        server.wait_for_metric("vllm:num_requests_running", 0.0)
        metrics = server.metrics()
        assert metrics["vllm:kv_cache_usage_perc"] == 0.0
        assert metrics["vllm:generation_tokens_total"] < 3000
        drafts = metrics["vllm:spec_decode_num_drafts_total"]
        assert metrics["vllm:medusa_tokens_per_step_count"] == drafts > 0
        assert metrics["vllm:spec_decode_num_accepted_tokens_total"] > 0
        assert server.stop() == 0
