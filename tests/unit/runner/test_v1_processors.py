# SPDX-License-Identifier: Apache-2.0
"""The second set of logits processors, whose requests are rows."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, LogitsProcessors

from tests.unit.runner.v1_steps import VOCAB_SIZE
from vllm_medusa.runner.v1.processors import ProcessorBuilder


class ForbidLast(AdapterLogitsProcessor):
    """A user's processor: a request does not repeat its last token."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        if not (params.extra_args or {}).get("forbid"):
            return None

        def forbid(output: list[int], logits: torch.Tensor) -> torch.Tensor:
            logits[output[-1]] = -torch.inf
            return logits

        return forbid


def build(*custom: type) -> ProcessorBuilder:
    """Build for at most two requests of up to three nodes."""
    config = SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=3),
        scheduler_config=SimpleNamespace(max_num_seqs=2),
    )
    builder = ProcessorBuilder()
    of_requests = builder(config, torch.device("cpu"), False, False, custom)
    assert isinstance(of_requests, LogitsProcessors)
    assert config.scheduler_config.max_num_seqs == 2
    # Both sets have the same kinds of processors, but share none.
    mine, theirs = list(builder.rows.processors.all), list(of_requests.all)
    assert [type(p) for p in mine] == [type(p) for p in theirs]
    assert not {id(p) for p in mine} & {id(p) for p in theirs}
    return builder


def apply(processors: LogitsProcessors, logits: torch.Tensor) -> torch.Tensor:
    logits = logits.clone()
    for processor in processors.all:
        logits = processor.apply(logits)
    return logits


PARAMS = [
    SamplingParams(),
    SamplingParams(min_tokens=3, stop_token_ids=[2]),
    SamplingParams(logit_bias={4: 2.5, 7: -1.0}),
    SamplingParams(min_p=0.3),
    SamplingParams(extra_args={"forbid": True}),
    SamplingParams(min_p=0.1, min_tokens=2, stop_token_ids=[9], logit_bias={1: 1.0}),
]


@pytest.mark.parametrize("seed", range(8))
def test_step_after_step(seed: int) -> None:
    """Rows come, go and change places: each is treated as if it were alone."""
    rng = random.Random(seed)
    processors = build(ForbidLast).rows
    for _ in range(12):
        rows = [
            (
                rng.choice(PARAMS),
                [1, 2],
                [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 5))],
            )
            for _ in range(rng.randint(1, 8))
        ]
        logits = torch.randn(len(rows), VOCAB_SIZE)
        processors.replace_rows(rows)
        actual = apply(processors.processors, logits)
        for index, row in enumerate(rows):
            alone = build(ForbidLast).rows
            alone.replace_rows([row])
            expected = apply(alone.processors, logits[index, None])
            torch.testing.assert_close(actual[index, None], expected)


def test_min_tokens_counts_a_row_s_own_path() -> None:
    processors = build().rows
    params = SamplingParams(min_tokens=3, stop_token_ids=[2])
    processors.replace_rows([(params, [0], [5] * length) for length in range(1, 5)])
    logits = apply(processors.processors, torch.zeros(4, VOCAB_SIZE))
    assert logits[:, 2].isinf().tolist() == [True, True, False, False]


def test_custom_processors_are_told_from_vllm_s() -> None:
    assert not build().rows.has_custom
    assert build(ForbidLast).rows.has_custom
