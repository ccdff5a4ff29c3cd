# SPDX-License-Identifier: Apache-2.0
"""Logprobs of visited rows, against vLLM's sampler on one row at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.sample.sampler import Sampler

from tests.unit.runner.v1_steps import VOCAB_SIZE, metadata
from vllm_medusa.acceptance import EXACT
from vllm_medusa.runner.v1.processors import RowProcessors
from vllm_medusa.runner.v1.request_traits import RequestTraits
from vllm_medusa.runner.v1.row_sampler import RowSampler
from vllm_medusa.runner.v1.rows import StepRows
from vllm_medusa.verify import PLACEHOLDER

MODES = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")
NUM_DRAFTS = torch.tensor([3, 0, 2])
# [num_reqs, width]: the rows that a step visits
VISITED = torch.tensor([[0, 2, 3], [4, 4, 4], [5, 7, 7]])
IS_EMITTED = torch.tensor([[True] * 3, [True, False, False], [True, True, False]])
NAMED = {0: [4, 11], 2: [0, 20, 6]}


def draw(
    sampler: Sampler, logits: torch.Tensor, num_drafts: torch.Tensor, values: Any
) -> Any:
    """Draw at the rows of greedy requests whose allowed tokens are even."""
    params = SamplingParams(temperature=0.0, allowed_token_ids=[0, 2])
    traits = [RequestTraits.of(params, EXACT)] * len(num_drafts)
    requests: list[Any] = [
        SimpleNamespace(
            req_id="",
            sampling_params=params,
            prompt_token_ids=[1],
            output_token_ids=[1],
        )
        for _ in num_drafts
    ]
    row_sampler = RowSampler(sampler, RowProcessors(LogitsProcessors()), None)
    rows = StepRows(num_drafts, None, None)
    return row_sampler, row_sampler.draw(logits, values, rows, requests, traits)


def of_requests(count: int, named: dict[int, list[int]] | None) -> Any:
    is_odd = torch.arange(VOCAB_SIZE) % 2 == 1
    return metadata(
        count,
        max_num_logprobs=4,
        logprob_token_ids=named,
        allowed_token_ids_mask=is_odd.repeat(count, 1),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("named", [None, NAMED])
@pytest.mark.parametrize("mode", MODES)
def test_against_the_sampler(
    mode: str, named: dict[int, list[int]] | None, dtype: torch.dtype
) -> None:
    sampler = Sampler(mode)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(8, VOCAB_SIZE, generator=generator).to(dtype)
    values = of_requests(3, named)
    row_sampler, draws = draw(sampler, logits.clone(), NUM_DRAFTS, values)
    sampled = torch.where(IS_EMITTED, draws.tokens[VISITED], PLACEHOLDER).int()
    tensors = row_sampler.logprobs(draws, values, sampled, VISITED)
    assert tensors.logprobs.shape[0] == sampled.numel()
    texts, lists = RejectionSampler.parse_output(
        sampled, VOCAB_SIZE, logprobs_tensors=tensors
    )
    assert lists is not None
    assert [len(text) for text in texts] == [3, 1, 2]
    assert lists.cu_num_generated_tokens == [0, 3, 4, 6]
    emitted = zip(
        IS_EMITTED.nonzero()[:, 0].tolist(),
        VISITED[IS_EMITTED].tolist(),
        [token for text in texts for token in text],
        strict=True,
    )
    for position, (request, row, token) in enumerate(emitted):
        names = None
        if named is not None:
            names = {0: named.get(request, [])}
        alone = sampler(logits[row, None].clone(), of_requests(1, names))
        expected: LogprobsTensors = alone.logprobs_tensors
        assert alone.sampled_token_ids.item() == token
        # Rows of fewer named tokens are filled up.
        width = expected.logprobs.shape[1]
        tokens = lists.logprob_token_ids[position, :width].tolist()
        scores = torch.tensor(lists.logprobs[position, :width])
        assert tokens == expected.logprob_token_ids[0].tolist()
        torch.testing.assert_close(scores, expected.logprobs[0])
        rank = int(expected.selected_token_ranks[0])
        assert lists.sampled_token_ranks[position] == rank
        # Greedily, the best allowed token.
        assert mode.startswith("raw") or rank == 1


def test_nothing_is_kept_if_nobody_asks() -> None:
    values = metadata(3)
    logits = torch.randn(8, VOCAB_SIZE)
    row_sampler, draws = draw(Sampler(), logits, NUM_DRAFTS, values)
    assert draws.raw is draws.processed is draws.target is None
    assert row_sampler.logprobs(draws, values, VISITED.int(), VISITED) is None
