# SPDX-License-Identifier: Apache-2.0
"""Sleep at both levels: what Medusa keeps in memory is there after waking up.

There is no GPU here to take memory away; `tests.engine.support.pools` does.
"""

from __future__ import annotations

import pytest
from vllm import LLM

from tests.engine.conftest import TinyModel
from tests.engine.support import pools
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids

pytestmark = pytest.mark.engine

NUM_TOKENS = 12
COUNT = 3


def ask(llm: LLM, prompts: list[list[int]]) -> tuple[list[list[int]], int]:
    """Greedy texts, and how many nodes were accepted for them."""
    before = stats(llm)["accepted"]
    texts = token_ids(generate(llm, prompts[:COUNT], greedy(NUM_TOKENS)))
    return texts, stats(llm)["accepted"] - before


@pytest.mark.runner("v2", reason="sleep is of GPUs, where Model Runner V2 runs")
@pytest.mark.parametrize(
    "medusa",
    [
        pytest.param({"tree": "optimal:6"}, id="fixed"),
        pytest.param({"tree": "beam:3x2"}, id="beam", marks=pytest.mark.slow),
        pytest.param(
            {"tree": "2x2", "acceptance": "rejection"},
            id="rejection",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_levels(
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    medusa: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Texts and accepted nodes are the same before, between and after."""
    memory = pools.install(monkeypatch)
    with engine(
        llama.path, {"model": llama.heads, **medusa}, enable_prefix_caching=True
    ) as llm:
        (memory.runner,) = llm.collective_rpc(lambda worker: worker.model_runner)
        assert set(memory.num_bytes) == {"runtime"}
        assert memory.num_bytes["runtime"] > 100_000, "the heads must be in a pool"
        texts, accepted = ask(llm, prompts)
        assert texts == [text[:NUM_TOKENS] for text in plain[:COUNT]]
        assert accepted > COUNT

        llm.sleep(level=1)
        llm.wake_up()
        assert ask(llm, prompts) == (texts, accepted)

        llm.sleep(level=2)
        llm.wake_up(tags=["weights"])
        llm.collective_rpc("reload_weights")
        llm.wake_up(tags=["kv_cache"])
        assert ask(llm, prompts) == (texts, accepted)

        # Requests in the middle of their text are kept, and computed anew.
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts[:COUNT]]
        llm.enqueue(inputs, greedy(NUM_TOKENS), use_tqdm=False)
        for _ in range(3):
            llm.llm_engine.step()
        llm.sleep(level=1, mode="keep")
        llm.wake_up()
        assert token_ids(llm.wait_for_completion(use_tqdm=False)) == texts


@pytest.mark.runner("v1", reason="what vLLM's CPU backend says")
def test_on_a_cpu(llama: TinyModel, prompts: list[list[int]]) -> None:
    """vLLM refuses the option; a call without it changes nothing but the caches."""
    options = {"model": llama.heads, "tree": "optimal:6"}
    with (
        pytest.raises(ValueError, match=r"(?i)sleep mode is not supported"),
        engine(llama.path, options, enable_sleep_mode=True),
    ):
        pass
    with engine(llama.path, options) as llm:
        before = ask(llm, prompts)
        llm.sleep(level=2)
        llm.wake_up()
        assert ask(llm, prompts) == before
