# SPDX-License-Identifier: Apache-2.0
"""Rows of logits as requests of their own, in Model Runner V1."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessors, MinPLogitsProcessor
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.sample.sampler import Sampler

from tests.unit.runner.v1_steps import VOCAB_SIZE, RandomStep, metadata
from vllm_medusa.runner.v1.rows import (
    StepRows,
    processing_metadata,
    row_metadata,
    target_logits,
)


@pytest.mark.parametrize("seed", range(20))
def test_rows_follow_their_own_path(seed: int) -> None:
    step = RandomStep(random.Random(seed))
    rows = step.rows()
    rows.follow_paths()
    outputs = [request.output_token_ids for request in step.requests]
    assert rows.outputs(outputs) == step.texts()
    owners = [i for i, count in enumerate(step.num_drafts) for _ in range(count + 1)]
    assert rows.owners.tolist() == owners
    assert rows.first_rows.tolist() == [owners.index(i) for i in range(len(outputs))]
    expected = [
        first + parent
        for first, parents in zip(rows.first_rows.tolist(), step.parents, strict=True)
        for parent in parents
    ]
    assert rows.parents == expected


def test_without_trees_every_request_is_a_row() -> None:
    rows = StepRows(torch.zeros(3, dtype=torch.int64), None, None)
    rows.follow_paths()
    assert rows.outputs([[1], [], [2, 3]]) == [[1], [], [2, 3]]
    assert rows.parents == rows.owners.tolist() == rows.first_rows.tolist() == [0, 1, 2]


def test_penalties_masks_and_bad_words_by_row() -> None:
    """All of the sampler's processing, against one request at a time."""
    rng = random.Random(4)
    step = RandomStep(rng, num_reqs=6)
    rows, count = step.rows(), len(step.num_drafts)
    rows.follow_paths()
    outputs = rows.outputs([request.output_token_ids for request in step.requests])
    prompts = torch.tensor([r.prompt_token_ids for r in step.requests])
    generator = torch.Generator().manual_seed(0)
    # Bad words of two tokens, whose first one ends the text of some rows.
    words = {
        request: [[text[-1], 3], [5]]
        for request, text in zip(rows.owners.tolist(), outputs, strict=True)
        if request % 2
    }
    of_requests = metadata(
        count,
        no_penalties=False,
        prompt_token_ids=prompts,
        presence_penalties=torch.rand(count, generator=generator),
        frequency_penalties=torch.rand(count, generator=generator),
        repetition_penalties=1 + torch.rand(count, generator=generator),
        allowed_token_ids_mask=torch.rand(count, VOCAB_SIZE, generator=generator) < 0.2,
        bad_words_token_ids=words,
    )
    logits = torch.randn(len(outputs), VOCAB_SIZE, generator=generator)
    of_rows = processing_metadata(
        of_requests, rows, {}, outputs, LogitsProcessors(), None
    )
    sampler = Sampler()
    actual = sampler.apply_logits_processors(logits.clone(), of_rows, False)
    num_excluded = 0
    for row, (owner, text) in enumerate(
        zip(rows.owners.tolist(), outputs, strict=True)
    ):
        alone = metadata(
            1,
            no_penalties=False,
            prompt_token_ids=prompts[owner, None],
            presence_penalties=of_requests.presence_penalties[owner, None],
            frequency_penalties=of_requests.frequency_penalties[owner, None],
            repetition_penalties=of_requests.repetition_penalties[owner, None],
            allowed_token_ids_mask=of_requests.allowed_token_ids_mask[owner, None],
            bad_words_token_ids={0: words[owner]} if owner in words else {},
            output_token_ids=[text],
        )
        expected = sampler.apply_logits_processors(
            logits[row, None].clone(), alone, False
        )
        torch.testing.assert_close(actual[row, None], expected)
        num_excluded += int(expected[0, 3].isinf())
    assert 0 < num_excluded < len(outputs)


@pytest.mark.parametrize("has_greedy", [False, True])
@pytest.mark.parametrize("has_min_p", [False, True])
def test_target_is_what_the_sampler_draws_from(
    has_greedy: bool, has_min_p: bool
) -> None:
    """The processed logits that vLLM's sampler itself returns."""
    num_drafts = torch.tensor([2, 0, 3])
    rows = StepRows(num_drafts, None, None)
    temperature = torch.tensor([0.0 if has_greedy else 0.3, 0.7, 1.6])
    of_requests = metadata(
        3,
        temperature=temperature,
        all_greedy=False,
        all_random=not has_greedy,
        top_k=torch.tensor([VOCAB_SIZE, 5, 7], dtype=torch.int32),
        top_p=torch.tensor([1.0, 0.8, 0.6]),
        max_num_logprobs=1,
    )
    of_rows = row_metadata(of_requests, rows.owners, {})
    if has_min_p:
        config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=16))
        min_p = MinPLogitsProcessor(config, torch.device("cpu"), False)
        params = [SamplingParams(min_p=0.2 * bool(i)) for i in rows.owners.tolist()]
        added = [(row, p, None, []) for row, p in enumerate(params)]
        min_p.update_state(BatchUpdate(len(params), (), added, ()))
        of_rows.logitsprocs = LogitsProcessors([min_p])
    logits = torch.randn(8, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    target = target_logits(logits, of_rows)
    assert torch.equal(logits, before)
    _, processed = Sampler("processed_logits").sample(logits, of_rows)
    assert processed is not None
    torch.testing.assert_close(target, processed)
    assert target.isinf().any()
