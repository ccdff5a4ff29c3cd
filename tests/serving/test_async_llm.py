# SPDX-License-Identifier: Apache-2.0
"""AsyncLLM used directly from Python: streams and aborted requests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import (
    DEFAULTS,
    engine,
    generate,
    greedy,
    token_ids,
)
from tests.serving.support.processes import environment
from tests.serving.support.server import MAX_MODEL_LEN

PROMPTS = [[3 + (11 * i + 5 * j) % 300 for j in range(4 + 3 * i)] for i in range(6)]


@contextmanager
def async_engine(model: TinyModel) -> Iterator[AsyncLLM]:
    """Run an engine with Medusa in processes of its own, as AsyncLLM always does."""
    arguments = AsyncEngineArgs(
        **{**DEFAULTS, "model": str(model.path), "max_model_len": MAX_MODEL_LEN},
        speculative_config={
            "method": "medusa",
            "model": str(model.heads),
            "tree": "optimal:8",
        },
    )
    with patch.dict(os.environ, environment(), clear=True):
        llm = AsyncLLM.from_engine_args(arguments)
        try:
            yield llm
        finally:
            llm.shutdown()


async def stream(llm: AsyncLLM, name: str, prompt: list[int]) -> list[list[int]]:
    """Return the tokens of each part."""
    params = greedy(40, output_kind=RequestOutputKind.DELTA)
    return [
        list(part.outputs[0].token_ids)
        async for part in llm.generate({"prompt_token_ids": prompt}, params, name)
    ]


async def leave(llm: AsyncLLM, name: str, *, by_abort: bool) -> int:
    """Leave a long request after its first part; return how much it brought."""
    params = SamplingParams(max_tokens=3500, ignore_eos=True)
    count = 0
    async for part in llm.generate({"prompt_token_ids": [7, 8, 9]}, params, name):
        count = len(part.outputs[0].token_ids)
        if not by_abort:
            break
        await llm.abort(name)
    return count


def test_streams_and_aborts(tiny_model: TinyModel) -> None:
    with engine(tiny_model.path, max_model_len=MAX_MODEL_LEN) as plain:
        expected = token_ids(generate(plain, PROMPTS, greedy(40)))

    async def run() -> None:
        with async_engine(tiny_model) as llm:
            *streams, aborted, left = await asyncio.gather(
                *(stream(llm, f"s{i}", prompt) for i, prompt in enumerate(PROMPTS)),
                leave(llm, "aborted", by_abort=True),
                leave(llm, "left", by_abort=False),
            )
            assert 0 < aborted < 3500
            assert 0 < left < 3500
            for parts, tokens in zip(streams, expected, strict=True):
                assert [token for part in parts for token in part] == tokens
            # Accepted nodes come in the same part as the token after them.
            assert max(len(part) for parts in streams for part in parts) > 1
            # What was left has left no trace.
            again = await asyncio.gather(
                *(stream(llm, f"t{i}", prompt) for i, prompt in enumerate(PROMPTS))
            )
            assert [[t for p in parts for t in p] for parts in again] == expected

    asyncio.run(run())
