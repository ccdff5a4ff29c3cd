# SPDX-License-Identifier: Apache-2.0
"""What two engines answered, compared in full."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.logprobs import Logprob
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind


def answers(outputs: Sequence[RequestOutput]) -> list[list[dict[str, Any]]]:
    """Tokens, text and the reason for the end, of every completion of each request."""
    return [
        [
            {
                "tokens": list(completion.token_ids),
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
            }
            for completion in sorted(output.outputs, key=lambda c: c.index)
        ]
        for output in outputs
    ]


Scores = Mapping[int, Logprob]
"""Logprobs of one position, by token."""
TOLERANCE = 1e-4
"""Rounding differs with the number of rows in a matrix product."""


def assert_same_logprobs(
    mine: Sequence[RequestOutput], theirs: Sequence[RequestOutput]
) -> None:
    """Compare the logprobs of all completions, and their sums."""
    for my_output, their_output in zip(mine, theirs, strict=True):
        pairs = zip(my_output.outputs, their_output.outputs, strict=True)
        for my_text, their_text in pairs:
            assert type(my_text.logprobs) is type(their_text.logprobs)
            if their_text.logprobs is None:
                continue
            assert len(my_text.logprobs) == len(their_text.token_ids)
            assert_same_scores(my_text.logprobs, their_text.logprobs)
            assert my_text.cumulative_logprob == pytest.approx(
                their_text.cumulative_logprob, abs=TOLERANCE * len(their_text.token_ids)
            )


def assert_same_scores(
    mine: Iterable[Scores | None], theirs: Iterable[Scores | None]
) -> None:
    """Compare logprobs position by position: tokens, values, ranks and words.

    Which excluded tokens (-inf) fill up the best ones of a position is chance.
    """
    for my_scores, their_scores in zip(mine, theirs, strict=True):
        assert (my_scores is None) == (their_scores is None)
        if my_scores is None or their_scores is None:
            continue
        my_finite, their_finite = (
            {t: s for t, s in scores.items() if math.isfinite(s.logprob)}
            for scores in (my_scores, their_scores)
        )
        assert my_finite.keys() == their_finite.keys()
        for token, score in their_finite.items():
            found = my_finite[token]
            assert abs(found.logprob - score.logprob) < TOLERANCE
            # Rounding may exchange tokens that are as good as equally likely.
            if found.rank != score.rank:
                near = sum(
                    abs(other.logprob - score.logprob) < TOLERANCE
                    for other in their_finite.values()
                )
                assert abs(found.rank - score.rank) < near
            assert found.decoded_token == score.decoded_token


def step_ends(
    llm: LLM, prompts: Sequence[list[int]], params: SamplingParams
) -> list[list[int]]:
    """Number of tokens each request had after each engine step that gave it some."""
    engine = llm.llm_engine
    params = params.clone()
    params.output_kind = RequestOutputKind.CUMULATIVE
    for index, prompt in enumerate(prompts):
        engine.add_request(f"ends-{index}", {"prompt_token_ids": prompt}, params)
    ends: list[list[int]] = [[] for _ in prompts]
    while engine.has_unfinished_requests():
        for output in engine.step():
            index = int(output.request_id.removeprefix("ends-"))
            count = len(output.outputs[0].token_ids)
            if not ends[index] or ends[index][-1] != count:
                ends[index].append(count)
    return ends
