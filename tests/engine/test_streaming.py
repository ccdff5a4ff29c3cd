# SPDX-License-Identifier: Apache-2.0
"""What is streamed while a request runs adds up to what plain vLLM answers."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
from transformers import AutoTokenizer
from vllm import LLM, SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import assert_same_scores
from tests.engine.support.engines import engine, generate, greedy, stats
from tests.engine.support.parameters import TREE
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((8, 32), (1, 16))


def _params(pieces: list[str]) -> list[SamplingParams]:
    """Requests of every kind for one prompt; `pieces` are its greedy text."""
    stop = "".join(pieces[7:9]).replace("\ufffd", "") or "a"
    return [
        greedy(LENGTH),
        greedy(LENGTH, logprobs=2),
        # Held back as long as they may become a stop string.
        greedy(LENGTH, stop=[stop]),
        greedy(LENGTH, stop=[stop], include_stop_str_in_output=True, logprobs=0),
        greedy(LENGTH, presence_penalty=1.5, stream_interval=3, logprobs=1),
        greedy(LENGTH, n=2, temperature=1.0, top_k=1),
    ]


def _stream(
    llm: LLM,
    prompts: list[list[int]],
    params: list[SamplingParams],
    kind: RequestOutputKind,
) -> list[list[RequestOutput]]:
    """All outputs of each request, step by step."""
    engine = llm.llm_engine
    for index, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
        own = own.clone()
        own.output_kind = kind
        engine.add_request(f"stream-{kind}-{index}", {"prompt_token_ids": prompt}, own)
    outputs: list[list[RequestOutput]] = [[] for _ in prompts]
    while engine.has_unfinished_requests():
        for output in engine.step():
            outputs[int(output.request_id.rpartition("-")[2])].append(output)
    return outputs


def _completions(outputs: list[RequestOutput], index: int) -> list[CompletionOutput]:
    return [c for output in outputs for c in output.outputs if c.index == index]


def _assert_ends_as(last: CompletionOutput, expected: CompletionOutput) -> None:
    assert last.finish_reason == expected.finish_reason
    assert last.stop_reason == expected.stop_reason


def test_streams_add_up(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama.path)
    params: list[SamplingParams] = []
    of_params: list[list[int]] = []
    for prompt, text in zip(prompts[:COUNT], plain, strict=False):
        own = _params([tokenizer.decode(token) for token in text])
        params += own
        of_params += [prompt] * len(own)
    with engine(llama.path) as llm:
        finals = generate(llm, of_params, params)
    with engine(llama.path, {"model": llama.heads, "tree": TREE}) as llm:
        deltas = _stream(llm, of_params, params, RequestOutputKind.DELTA)
        cumulative = _stream(llm, of_params, params, RequestOutputKind.CUMULATIVE)
        counters = stats(llm)
    assert counters["accepted"] > 0

    sizes: list[int] = []
    for final, of_delta, so_far in zip(finals, deltas, cumulative, strict=True):
        for expected in final.outputs:
            parts = _completions(of_delta, expected.index)
            tokens = list(chain.from_iterable(part.token_ids for part in parts))
            assert tokens == list(expected.token_ids)
            assert "".join(part.text for part in parts) == expected.text
            _assert_ends_as(parts[-1], expected)
            if expected.logprobs is not None:
                scores = chain.from_iterable(part.logprobs for part in parts)
                assert_same_scores(scores, expected.logprobs)
            sizes += [len(part.token_ids) for part in parts]

            wholes = _completions(so_far, expected.index)
            for earlier, later in pairwise(wholes):
                count = len(earlier.token_ids)
                assert list(later.token_ids)[:count] == list(earlier.token_ids)
                assert later.text.startswith(earlier.text)
            assert list(wholes[-1].token_ids) == list(expected.token_ids)
            assert wholes[-1].text == expected.text
            _assert_ends_as(wholes[-1], expected)
    # Accepted nodes come in the same part as the token after them.
    assert max(sizes) > 1
