# SPDX-License-Identifier: Apache-2.0
"""Requests of different schemes in one step, against each of them alone."""

from __future__ import annotations

import math
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.sampler import Sampler

from tests.unit.runner.v1_steps import VOCAB_SIZE, RandomStep
from vllm_medusa.acceptance import Acceptance
from vllm_medusa.attention.tree_batch import TreeBatch
from vllm_medusa.runner.v1.accept import StepVerifier
from vllm_medusa.runner.v1.drafts import NO_DRAFTS, Drafts
from vllm_medusa.runner.v1.generators import RowGenerators
from vllm_medusa.runner.v1.request_traits import RequestTraits, TraitBook
from vllm_medusa.runner.v1.row_sampler import Draws
from vllm_medusa.verify import (
    PLACEHOLDER,
    Verification,
    row_statistics,
    verify_exact,
    verify_rejection,
    verify_typical,
)

NUM_HEADS = 6
ACCEPTANCES = (
    Acceptance(),
    Acceptance(scheme="typical", epsilon=0.02),
    Acceptance(scheme="typical", epsilon=0.3, delta=None),
    Acceptance(scheme="rejection"),
)


def alone(
    trees: TreeBatch,
    index: int,
    tokens: torch.Tensor,
    drawn: torch.Tensor,
    target: torch.Tensor,
    traits: RequestTraits,
    probs: torch.Tensor,
) -> Verification:
    """Verify one tree; `drawn` and `target` are those of its own rows."""
    one = slice(index, index + 1)
    shape = trees.parents()[one], trees.depths()[one], trees.num_rows[one]
    max_depth, acceptance = trees.layout.max_depth, traits.acceptance
    if acceptance.scheme == "exact":
        return verify_exact(tokens, drawn, *shape, max_depth)
    if acceptance.scheme == "typical":
        statistics = row_statistics(target, tokens[0], trees.parents()[index])
        delta = math.inf if acceptance.delta is None else acceptance.delta
        return verify_typical(
            tokens,
            drawn,
            statistics.logprobs[None],
            statistics.entropies[None],
            *shape,
            torch.tensor([acceptance.epsilon]),
            torch.tensor([delta]),
            max_depth,
        )
    return verify_rejection(
        tokens,
        target,
        torch.arange(tokens.shape[1])[None],
        probs[None],
        None,
        *shape,
        torch.tensor([traits.seed]),
        trees.bases[one],
        (trees.width,) * max_depth,
        max_depth,
    )


@pytest.mark.parametrize("seed", range(30))
def test_each_by_its_own_scheme(seed: int) -> None:
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    step = RandomStep(rng, num_reqs=8)
    rows, trees = step.rows(), step.trees()
    assert rows.tokens is not None
    target = 2 * torch.randn(len(rows.owners), VOCAB_SIZE, generator=generator)
    drawn = target.argmax(dim=-1)
    # Half of the nodes hold what was drawn at their parent.
    tokens = rows.tokens.clone()
    places = rows.first_rows[trees.requests, None] + trees.tree_rows
    hits = torch.rand(tokens.shape, generator=generator) < 0.5
    hits[:, 0] = False
    tokens = torch.where(hits, drawn[places].gather(1, trees.parents()), tokens)
    traits = [
        RequestTraits(rng.choice(ACCEPTANCES), False, False, False, 1.0, 17 * i)
        for i in range(trees.num_trees)
    ]
    # Drafts proposed for fewer nodes come with fewer heads.
    drafts = [
        Drafts(probs=torch.rand(depth, VOCAB_SIZE, generator=generator).softmax(-1))
        for depth in [NUM_HEADS, *rng.choices(range(NUM_HEADS - 1, NUM_HEADS + 1), k=9)]
    ][: trees.num_trees]
    # One has placeholders, which no draw may equal.
    drafts[-1] = NO_DRAFTS
    no_generators = RowGenerators({}, rows, Sampler(), VOCAB_SIZE)
    heads: Any = SimpleNamespace(draft_token_ids=None, vocab_size=VOCAB_SIZE)
    max_children = (trees.width,) * trees.layout.max_depth
    result = StepVerifier(
        trees,
        tokens,
        Draws(drawn, target, None, None, no_generators),
        places,
        traits,
        drafts,
        heads,
        max_children,
    ).verify()
    for index, own in enumerate(traits):
        probs, own_tokens = drafts[index].probs, tokens[index, None]
        if drafts[index] is NO_DRAFTS:
            probs = torch.zeros(NUM_HEADS, VOCAB_SIZE)
            own_tokens = torch.full_like(own_tokens, PLACEHOLDER)
            assert result.num_accepted[index] == 0
        assert probs is not None
        expected = alone(
            trees,
            index,
            own_tokens,
            drawn[places[index]][None],
            target[places[index]],
            own,
            probs,
        )
        assert torch.equal(result.tokens[index], expected.tokens[0])
        assert torch.equal(result.rows[index], expected.rows[0])
        assert result.num_accepted[index] == expected.num_accepted[0]


def test_what_parameters_ask_for() -> None:
    engine = Acceptance(scheme="rejection")
    plain = RequestTraits.of(SamplingParams(temperature=0.7, seed=5), engine)
    assert plain == RequestTraits(engine, False, False, False, 0.7, 5)
    greedy = RequestTraits.of(SamplingParams(temperature=0.0), engine)
    assert (greedy.acceptance.scheme, greedy.draft_temperature) == ("exact", 0.0)
    typical = RequestTraits.of(
        SamplingParams(
            extra_args={
                "medusa_acceptance": "typical",
                "medusa_first_token": "greedy",
            }
        ),
        engine,
    )
    assert typical.acceptance.first_token == "greedy" and not typical.needs_rows
    assert typical.draft_temperature == 0.0


PROCESSING: dict[str, Any] = {
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "min_p": 0.1,
    "min_tokens": 1,
    "logit_bias": {3: 1.0},
    "allowed_token_ids": [3],
    "thinking_token_budget": 0,
}


@pytest.mark.parametrize("name", PROCESSING)
def test_processing(name: str) -> None:
    traits = RequestTraits.of(SamplingParams(**{name: PROCESSING[name]}), Acceptance())
    assert traits.is_processed
    assert traits.needs_rows == (name == "thinking_token_budget")
    assert not RequestTraits.of(SamplingParams(logprobs=3), Acceptance()).is_processed


def test_seeds_without_a_seed_differ_and_stay() -> None:
    book = TraitBook(Acceptance(scheme="rejection"))
    requests: Any = {
        name: SimpleNamespace(sampling_params=SamplingParams()) for name in "abc"
    }
    first = [t.seed for t in book.look_up("abc", requests)]
    assert [t.seed for t in book.look_up("abc", requests)] == first
    assert len(set(first)) == 3
    book.forget({"b", "unknown"})
    again = [t.seed for t in book.look_up("abc", requests)]
    assert Counter(first) - Counter(again) == Counter([first[1]])
