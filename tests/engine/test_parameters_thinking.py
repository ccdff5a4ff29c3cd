# SPDX-License-Identifier: Apache-2.0
"""Thinking budgets: the end of thinking is forced where plain vLLM forces it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain

import pytest
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.config import ReasoningConfig

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import greedy
from tests.engine.support.parameters import Comparison, Requests, compared
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((12, 32), (3, 20))
BUDGETS = sample((0, 1, 2, 5, 9, 40), (0, 2, 5))
# Several tokens, which the forced end of a path may be cut between.
END = "!?#"


def _start(model: TinyModel, plain: list[list[int]]) -> tuple[str, int]:
    """A start of thinking that many texts come to by themselves: text and token."""
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    counts = Counter(chain.from_iterable(set(text[2:8]) for text in plain[:COUNT]))
    for token, _ in counts.most_common():
        text = tokenizer.decode([token])
        if text.isascii() and tokenizer.encode(text) == [token]:
            return text, token
    raise AssertionError("no text has a token of its own")


@pytest.fixture(scope="module")
def comparison(
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Comparison]:
    start, token = _start(llama, plain)
    # Half of the prompts end in the midst of thinking.
    prompts = [
        [*prompt, token, *prompt[:3]] if index % 2 else prompt
        for index, prompt in enumerate(prompts[:COUNT])
    ]

    def params(budget: int, index: int) -> SamplingParams:
        return greedy(
            LENGTH, thinking_token_budget=budget, logprobs=2 if index % 3 else None
        )

    cases = {str(b): [params(b, i) for i in range(COUNT)] for b in BUDGETS}
    cases["4 with penalty"] = [
        greedy(LENGTH, thinking_token_budget=4, presence_penalty=1.5)
        for _ in range(COUNT)
    ]
    reasoning = ReasoningConfig(reasoning_start_str=start, reasoning_end_str=END)
    requests = Requests.of(prompts, LENGTH, cases)
    folder = tmp_path_factory.mktemp("heads")
    with compared(
        llama.path, requests, folder, reasoning_config=reasoning
    ) as comparison:
        yield comparison


@pytest.mark.parametrize("budget", BUDGETS)
def test_alone(comparison: Comparison, budget: int) -> None:
    comparison.check_alone(str(budget))
    texts = [o.outputs[0].text for o in comparison.expected[str(budget)]]
    num_ended = sum(END in text for text in texts)
    assert num_ended >= (COUNT // 2 if budget < LENGTH // 4 else 0)


def test_mixed(comparison: Comparison) -> None:
    comparison.check_mixed()
