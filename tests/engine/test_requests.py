# SPDX-License-Identifier: Apache-2.0
"""Requests that can't have a tree run without one, beside requests that have one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import (
    LogitsProcessor as LogitsProcessorV2,
)

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import answers
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from tests.runner import sample

pytestmark = pytest.mark.engine

LENGTH = 24
PER_KIND = sample(4, 2)
COUNT = sample(8, 4)
# What excludes a tree on this runner; every row of V2 has the others right.
EXCLUDING = sample(
    (
        "logprobs",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "bad_words",
        "allowed_token_ids",
        "min_tokens",
        "structured output",
    ),
    (
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "bad_words",
        "structured output",
    ),
)


def kinds(text: list[int]) -> dict[str, SamplingParams]:
    """Parameters that may exclude a tree, by the name under which they are counted.

    Each changes or reports on the greedy text `text`, or would if done wrong.
    """

    def params(**options: Any) -> SamplingParams:
        return greedy(LENGTH, **options)

    return {
        "logprobs": params(logprobs=3),
        "presence_penalty": params(presence_penalty=1.5),
        "frequency_penalty": params(frequency_penalty=1.2),
        "repetition_penalty": params(repetition_penalty=1.3),
        "bad_words": params(bad_words=["e", "ba", "Z"]),
        "allowed_token_ids": params(allowed_token_ids=list(range(20, 120))),
        "min_tokens": params(min_tokens=12, stop_token_ids=[text[2]]),
        "structured output": params(
            ignore_eos=False,
            structured_outputs=StructuredOutputsParams(regex="[a-z]{8,12}"),
        ),
    }


def _batch(
    plain: list[list[int]],
) -> tuple[list[str | None], list[SamplingParams]]:
    """Kinds (None: plain greedy) and parameters, in a mixed order."""
    names: list[str | None] = []
    params: list[SamplingParams] = []
    for _ in range(PER_KIND):
        for name in kinds(plain[0]):
            names += [name, None]
            index = len(params)
            params += [kinds(plain[index])[name], greedy(LENGTH)]
    return names, params


def _logprobs(llm_outputs: Any) -> list[list[dict[int, tuple[float, int | None]]]]:
    return [
        [
            {token: (entry.logprob, entry.rank) for token, entry in position.items()}
            for position in output.outputs[0].logprobs
        ]
        for output in llm_outputs
        if output.outputs[0].logprobs is not None
    ]


def test_excluded_requests(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    names, params = _batch(plain)
    prompts = prompts[: len(params)]
    with engine(llama.path) as llm:
        expected_outputs = generate(llm, prompts, params)
        expected = answers(expected_outputs)
    with engine(llama.path, {"model": llama.heads, "tree": "optimal:12"}) as llm:
        outputs = generate(llm, prompts, params)
        counters = stats(llm)
    for name, mine, theirs in zip(names, answers(outputs), expected, strict=True):
        assert mine == theirs, name
    assert counters["without_tree"] == dict.fromkeys(EXCLUDING, PER_KIND)
    assert counters["accepted"] > 0

    # Each kind does something: its text is not the plain greedy one, or has extras.
    changed = {
        name
        for name, (answer,), text in zip(names, expected, plain, strict=False)
        if answer["tokens"] != text[:LENGTH]
    }
    # The fewer texts on V2 need not hold any of the bad words.
    unchanged = {"logprobs"} | sample(set(), {"bad_words"})
    assert changed >= set(kinds(plain[0])) - unchanged
    mine, theirs = _logprobs(outputs), _logprobs(expected_outputs)
    assert len(mine) == len(theirs) == PER_KIND
    for mine_row, their_row in zip(mine, theirs, strict=True):
        assert [set(position) for position in mine_row] == [
            set(position) for position in their_row
        ]
        for mine_at, their_at in zip(mine_row, their_row, strict=True):
            for token, (logprob, rank) in their_at.items():
                assert mine_at[token][0] == pytest.approx(logprob, abs=1e-4)
                assert mine_at[token][1] == rank


def test_min_p_and_logit_bias(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """vLLM refuses them beside its own speculative decoding; here they are served."""
    params = []
    for index, text in enumerate(plain[:COUNT]):
        often = max(set(text[:LENGTH]), key=text.count)
        params += [
            greedy(LENGTH, logit_bias={often: -50.0, 77: 1.5}),
            greedy(LENGTH, temperature=1.0, seed=index, min_p=0.1),
            greedy(LENGTH),
        ]
    # No prompt in pieces: vLLM can't rewind a CPU generator.
    options = {"max_num_batched_tokens": 8192}
    with engine(llama.path, **options) as llm:
        expected = token_ids(generate(llm, prompts[: 3 * COUNT], params))
    medusa = {"model": llama.heads, "tree": "optimal:12"}
    with engine(llama.path, medusa, **options) as llm:
        texts = token_ids(generate(llm, prompts[: 3 * COUNT], params))
        counters = stats(llm)
    assert texts == expected
    assert texts[2::3] == [text[:LENGTH] for text in plain[2 : 3 * COUNT : 3]]
    assert counters["without_tree"] == sample({"logit_bias": COUNT, "min_p": COUNT}, {})
    assert counters["accepted"] > 0


def test_choice(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """A grammar ends the text itself, with tree requests around it."""
    choices = ["red apple", "green pear", "blue plum"]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=LENGTH,
            structured_outputs=StructuredOutputsParams(choice=choices),
        )
        if index % 3 == 0
        else greedy(LENGTH)
        for index in range(3 * COUNT)
    ]
    with engine(llama.path, {"model": llama.heads, "tree": "optimal:8"}) as llm:
        texts = token_ids(generate(llm, prompts[: 3 * COUNT], params))
        counters = stats(llm)
    tokenizer = AutoTokenizer.from_pretrained(llama.path)
    for index, text in enumerate(texts):
        if index % 3 == 0:
            assert tokenizer.decode(text, skip_special_tokens=True) in choices
        else:
            assert text == plain[index][:LENGTH]
    assert counters["without_tree"] == {"structured output": COUNT}


def test_prompt_logprobs(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """They concern the prompt alone: the request keeps its tree."""
    params = greedy(LENGTH, prompt_logprobs=2)
    with engine(llama.path) as llm:
        expected = generate(llm, prompts[:COUNT], params)
    with engine(llama.path, {"model": llama.heads, "tree": "optimal:12"}) as llm:
        outputs = generate(llm, prompts[:COUNT], params)
        assert stats(llm)["accepted"] > 0
    assert token_ids(outputs) == [text[:LENGTH] for text in plain[:COUNT]]
    for mine, theirs in zip(outputs, expected, strict=True):
        assert mine.prompt_logprobs is not None
        assert theirs.prompt_logprobs is not None
        for position, their_position in zip(
            mine.prompt_logprobs, theirs.prompt_logprobs, strict=True
        ):
            assert (position is None) == (their_position is None)
            for token, entry in (their_position or {}).items():
                assert position[token].logprob == pytest.approx(entry.logprob, abs=1e-4)


class ForbidToken(sample(LogitsProcessor, LogitsProcessorV2)):  # type: ignore[misc]
    """A user's logits processor: tokens 50 to 99 are never chosen.

    The two runners ask for different classes and call `apply` differently.
    """

    def __init__(self, vllm_config: VllmConfig, *runner_state: Any) -> None:
        pass

    def apply(self, logits: torch.Tensor, *context: Any) -> torch.Tensor:
        logits[:, 50:100] = float("-inf")
        return logits

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        pass


def test_custom_logits_processor(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """It knows requests, not rows: no request has a tree, and it is applied."""
    processors = {"logits_processors": [ForbidToken]}
    with engine(llama.path, **processors) as llm:
        expected = token_ids(generate(llm, prompts[:COUNT], greedy(LENGTH)))
    medusa = {"model": llama.heads, "tree": "optimal:12"}
    with engine(llama.path, medusa, **processors) as llm:
        assert token_ids(generate(llm, prompts[:COUNT], greedy(LENGTH))) == expected
        counters = stats(llm)
    assert counters["without_tree"] == {"logits processor ForbidToken": COUNT}
    assert counters["trees"] == 0
    assert expected != [text[:LENGTH] for text in plain[:COUNT]]
