# SPDX-License-Identifier: Apache-2.0
"""vLLM's beam search, whose every request asks for one token and its logprobs."""

from __future__ import annotations

from itertools import chain

import pytest
from vllm import LLM
from vllm.sampling_params import BeamSearchParams

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from tests.engine.support.parameters import TREE
from tests.runner import sample, slow_on_v2

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((6, 10), (2, 5))
PARAMS = (
    BeamSearchParams(beam_width=3, max_tokens=LENGTH, ignore_eos=True),
    BeamSearchParams(beam_width=2, max_tokens=LENGTH, length_penalty=0.5),
)


def _search(
    llm: LLM, prompts: list[list[int]], params: BeamSearchParams
) -> list[list[tuple[list[int], str | None, float]]]:
    """Tokens, text and summed logprob of every beam."""
    outputs = llm.beam_search([{"prompt_token_ids": p} for p in prompts], params)
    return [
        [(list(s.tokens), s.text, s.cum_logprob) for s in output.sequences]
        for output in outputs
    ]


@slow_on_v2
def test_beams_are_those_of_plain_vllm(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    prompts, texts = prompts[:COUNT], plain[:COUNT]
    with engine(llama.path) as llm:
        expected = [_search(llm, prompts, params) for params in PARAMS]
    with engine(llama.path, {"model": llama.heads, "tree": TREE}) as llm:
        found = [_search(llm, prompts, params) for params in PARAMS]
        # The same engine goes on with trees.
        again = token_ids(generate(llm, prompts, greedy(LENGTH)))
        assert stats(llm)["accepted"] > 0
    assert again == [text[:LENGTH] for text in texts]
    for mine, theirs in zip(chain(*found), chain(*expected), strict=True):
        assert [beam[:2] for beam in mine] == [beam[:2] for beam in theirs]
        assert [beam[2] for beam in mine] == pytest.approx(
            [beam[2] for beam in theirs], abs=1e-3
        )
    # Beams are not just the greedy text.
    best = [beams[0][0][len(p) :] for beams, p in zip(found[0], prompts, strict=True)]
    assert best != again
