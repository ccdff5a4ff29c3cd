# SPDX-License-Identifier: Apache-2.0
"""Requests of every kind that two ranks must answer as one does."""

from __future__ import annotations

from typing import Any

from vllm import LLM, SamplingParams
from vllm.outputs import RequestOutput

from tests.engine.support.engines import BLOCK_SIZE, generate, greedy
from tests.engine.support.grammars import CASES as GRAMMARS
from tests.engine.support.models import VOCAB_SIZE
from tests.engine.support.prompts import random_prompts

TWO_RANKS: dict[str, Any] = {"tensor_parallel_size": 2}
PROMPTS = random_prompts(8, VOCAB_SIZE, longest=4 * BLOCK_SIZE)
LENGTH = 32


def drawn(seed: int, **options: Any) -> SamplingParams:
    """A seeded request at a temperature where drafts are accepted and refused."""
    return greedy(LENGTH, temperature=0.8, seed=seed, **options)


def by_scheme(scheme: str) -> list[SamplingParams]:
    """Requests accepted by `scheme`. They are few, so that none is preempted: what
    other schemes than the exact one accept depends on whether there was a tree."""
    options = {"medusa_acceptance": scheme}
    return [drawn(seed, extra_args=options) for seed in range(4)]


GREEDY = [greedy(LENGTH)] * len(PROMPTS)
SEEDED = [
    drawn(seed, top_p=0.9, frequency_penalty=0.3 * (seed % 2))
    for seed in range(len(PROMPTS))
]
STRUCTURED = list(GRAMMARS.values())


def ask(llm: LLM, params: list[SamplingParams]) -> list[RequestOutput]:
    """Give each of `params` to a prompt, all at once."""
    return generate(llm, PROMPTS[: len(params)], params)


def exactly(params: list[SamplingParams]) -> list[SamplingParams]:
    """The same requests with exact acceptance, in an engine of any other."""
    changed = []
    for own in params:
        own = own.clone()
        own.extra_args = {"medusa_acceptance": "exact"}
        changed.append(own)
    return changed
