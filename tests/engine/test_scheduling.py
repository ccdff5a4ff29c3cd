# SPDX-License-Identifier: Apache-2.0
"""What the scheduler does: preemption, cached prefixes, arrivals, aborts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from vllm import LLM

from tests.engine.conftest import PLAIN_TOKENS, TinyModel
from tests.engine.support.engines import (
    BLOCK_SIZE,
    engine,
    generate,
    greedy,
    metrics,
    stats,
    token_ids,
)
from tests.runner import sample

pytestmark = pytest.mark.engine

TREE = "optimal:12"
# Tokens that become part of a prompt.
HALF = sample(48, 24)


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_preemption(
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    prefix_caching: bool,
) -> None:
    """Too few KV blocks for all requests: some lose theirs and start again."""
    count = sample(40, 14)
    with engine(
        llama.path,
        {"model": llama.heads, "tree": TREE},
        num_gpu_blocks_override=sample(24, 15),
        max_num_seqs=8,
        enable_prefix_caching=prefix_caching,
    ) as llm:
        texts = token_ids(generate(llm, prompts[:count], greedy(PLAIN_TOKENS)))
        assert metrics(llm)["vllm:num_preemptions"] > 0
        assert stats(llm)["accepted"] > 0
    assert texts == plain[:count]


def test_cached_prefix_of_own_text(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """The second prompt is the first with half its text: blocks whose rows were
    accepted in trees, and moved, serve another request."""
    count = sample(32, 12)
    prompts, plain = prompts[:count], plain[:count]
    with engine(
        llama.path,
        {"model": llama.heads, "tree": TREE},
        enable_prefix_caching=True,
        kv_cache_memory_bytes=128 << 20,
    ) as llm:
        assert token_ids(generate(llm, prompts, greedy(PLAIN_TOKENS))) == plain
        assert stats(llm)["moved"] > 0
        longer = [p + text[:HALF] for p, text in zip(prompts, plain, strict=True)]
        outputs = generate(llm, longer, greedy(PLAIN_TOKENS - HALF))
    assert token_ids(outputs) == [text[HALF:] for text in plain]
    for prompt, output in zip(prompts, outputs, strict=True):
        # All full blocks but, at most, the last one of the longer prompt are hits.
        total = len(prompt) + HALF
        assert output.num_cached_tokens is not None
        assert output.num_cached_tokens >= (total - 1) // BLOCK_SIZE * BLOCK_SIZE
    beyond = sum(
        output.num_cached_tokens > len(prompt)
        for prompt, output in zip(prompts, outputs, strict=True)
    )
    assert beyond > count // 3, "the hits must reach into the generated text"


def run_steps(
    llm: LLM,
    prompts: list[list[int]],
    arrivals: list[int],
    lengths: list[int],
    on_step: Callable[[int, dict[int, list[int]]], None] = lambda step, texts: None,
) -> dict[int, list[int]]:
    """Step the engine by hand; request i arrives before step arrivals[i]."""
    llm_engine = llm.llm_engine
    texts: dict[int, list[int]] = {}
    step, waiting = 0, set(range(len(prompts)))
    while waiting or llm_engine.has_unfinished_requests():
        for index in sorted(i for i in waiting if arrivals[i] <= step):
            waiting.remove(index)
            llm_engine.add_request(
                str(index),
                {"prompt_token_ids": prompts[index]},
                greedy(lengths[index]),
            )
        for output in llm_engine.step():
            texts[int(output.request_id)] = list(output.outputs[0].token_ids)
        on_step(step, texts)
        step += 1
    return texts


@pytest.mark.parametrize("budget", [pytest.param(64, marks=pytest.mark.smoke), 512])
def test_arrivals(
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    budget: int,
) -> None:
    """Prompts arrive while others decode: steps mix prefill, trees and single rows."""
    count = sample(40, 12)
    arrivals = [2 * i for i in range(count)]
    lengths = [8 + sample(3, 1) * (i % 15) for i in range(count)]
    with engine(
        llama.path,
        {"model": llama.heads, "tree": TREE},
        max_num_seqs=8,
        max_num_batched_tokens=budget,
    ) as llm:
        texts = run_steps(llm, prompts[:count], arrivals, lengths)
        assert stats(llm)["accepted"] > 0
    assert texts == {i: plain[i][: lengths[i]] for i in range(count)}


def test_abort(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """Every third request is aborted midway; the others don't notice, and what the
    aborted ones had so far was right."""
    count, length = sample((30, 40), (9, 24))
    aborted = {}
    with engine(
        llama.path, {"model": llama.heads, "tree": TREE}, max_num_seqs=8
    ) as llm:

        def abort(step: int, texts: dict[int, list[int]]) -> None:
            for index in range(0, count, 3):
                if index not in aborted and len(texts.get(index, [])) >= 9:
                    aborted[index] = texts[index]
                    llm.llm_engine.abort_request([str(index)])

        texts = run_steps(llm, prompts[:count], [0] * count, [length] * count, abort)
        # The slots they left serve others.
        again = token_ids(generate(llm, prompts[:count], greedy(16)))
    assert len(aborted) == count // 3
    for index in range(count):
        if index in aborted:
            assert 9 <= len(aborted[index]) < length
            assert aborted[index] == plain[index][: len(aborted[index])]
        else:
            assert texts[index] == plain[index][:length]
    assert again == [text[:16] for text in plain[:count]]
