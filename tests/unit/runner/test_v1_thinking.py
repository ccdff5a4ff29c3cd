# SPDX-License-Identifier: Apache-2.0
"""Thinking budgets of rows, against vLLM's own state brought forward token by token."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

from vllm_medusa.runner.v1.thinking import RowThinkingBudgets

START, END = [1], [2, 3]
VOCAB_SIZE = 8
REASONING = SimpleNamespace(
    reasoning_start_token_ids=START, reasoning_end_token_ids=END
)
CPU = torch.device("cpu")


def plain(params: SamplingParams, prompt: list[int], text: list[int]) -> torch.Tensor:
    """Logits [vocab_size] after `text`, in an engine without speculation."""
    holder = ThinkingBudgetStateHolder(REASONING, 1, 0, CPU, False)
    output: list[int] = []
    holder.sync_batch(BatchUpdate(1, (), [(0, params, prompt, output)], ()))
    for token in [None, *text]:
        if token is not None:
            output.append(token)
        logits = torch.zeros(1, VOCAB_SIZE)
        holder.update_state([output], [[]])
        logits = holder.apply_to_logits(logits, False, [[]])
    return logits[0]


def random_text(rng: random.Random, length: int) -> list[int]:
    """Starts and ends of thinking are common, and so are halves of an end."""
    return [rng.choice([1, 2, 3, 3, 4, 5]) for _ in range(length)]


@pytest.mark.parametrize("seed", range(40))
def test_rows_of_random_steps(seed: int) -> None:
    """Two requests with a budget beside one without; in each step a random tree, of
    which a random path is accepted, and then one token more."""
    rng = random.Random(seed)
    budgets = RowThinkingBudgets(SimpleNamespace(reasoning_config=REASONING), 64, CPU)
    requests: list[Any] = [
        SimpleNamespace(
            req_id=str(index),
            sampling_params=SamplingParams(thinking_token_budget=budget),
            prompt_token_ids=[4, *START, 5] if rng.random() < 0.5 else [4, 5],
            output_token_ids=[],
        )
        for index, budget in enumerate((rng.randrange(6), None, rng.randrange(4)))
    ]
    num_forced = 0
    for _ in range(8):
        owners, parents, texts, first_rows = [], [], [], []
        for request in requests:
            first_rows.append(len(owners))
            # Before its first token a request has no drafts.
            count = rng.randint(0, 5) if request.output_token_ids else 0
            drafts = random_text(rng, count)
            for row in range(count + 1):
                parent = (
                    len(owners) if row == 0 else first_rows[-1] + rng.randrange(row)
                )
                parents.append(parent)
                owners.append(request)
                before = texts[parent] if row else list(request.output_token_ids)
                texts.append([*before, drafts[row - 1]] if row else before)
        budgets.begin(owners, parents)
        assert budgets.has_tracked_requests()
        budgets.update_state(texts, None)
        logits = torch.zeros(len(owners), VOCAB_SIZE)
        logits = budgets.apply_to_logits(logits, False, None)
        for row, (owner, text) in enumerate(zip(owners, texts, strict=True)):
            expected = torch.zeros(VOCAB_SIZE)
            if owner.sampling_params.thinking_token_budget is not None:
                expected = plain(owner.sampling_params, owner.prompt_token_ids, text)
            assert torch.equal(logits[row], expected), (row, text)
            num_forced += int(expected.any())
        ends = [*first_rows[1:], len(owners)]
        last_rows = {}
        for request, first, end in zip(requests, first_rows, ends, strict=True):
            last = rng.randrange(first, end)
            last_rows[request.req_id] = last
            # What is forced comes; else anything may.
            token = int(logits[last].argmax()) if logits[last].any() else None
            bonus = random_text(rng, 1) if token is None else [token]
            request.output_token_ids = texts[last] + bonus
        budgets.commit(last_rows)
    assert num_forced > 0


def test_a_request_that_has_ended_is_forgotten() -> None:
    budgets = RowThinkingBudgets(SimpleNamespace(reasoning_config=REASONING), 8, CPU)
    request: Any = SimpleNamespace(
        req_id="a",
        sampling_params=SamplingParams(thinking_token_budget=1),
        prompt_token_ids=[*START],
        output_token_ids=[5],
    )

    def forced(text: list[int]) -> int:
        budgets.begin([request], [0])
        budgets.update_state([text], None)
        logits = budgets.apply_to_logits(torch.zeros(1, VOCAB_SIZE), False, None)
        budgets.commit({"a": 0})
        return int(logits.argmax()) if logits.any() else -1

    assert [forced([]), forced([5]), forced([5, 2])] == [-1, 2, 3]
    budgets.forget({"a"})
    assert [forced([]), forced([5])] == [-1, 2]
