# SPDX-License-Identifier: Apache-2.0
"""Compiled models, which is what an engine runs without `enforce_eager`."""

from __future__ import annotations

import pytest

from tests.engine.conftest import PLAIN_TOKENS, TinyModel
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids

pytestmark = [pytest.mark.engine, pytest.mark.slow]

COUNT = 8


def test_text(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    with engine(
        llama.path, {"model": llama.heads, "tree": "optimal:12"}, enforce_eager=False
    ) as llm:
        mode = llm.llm_engine.vllm_config.compilation_config.mode
        assert mode.name in ("VLLM_COMPILE", "DYNAMO_TRACE_ONCE")
        texts = token_ids(generate(llm, prompts[:COUNT], greedy(PLAIN_TOKENS)))
        assert stats(llm)["moved"] > 0
    assert texts == plain[:COUNT]
