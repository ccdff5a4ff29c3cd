# SPDX-License-Identifier: Apache-2.0
"""At a temperature above 0 the text has exactly the law of the model.

Thousands of draws are compared with probabilities from transformers, by a chi-square
test of the joint law of three tokens in a row. Seeds are fixed: a test that passes
keeps passing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, stats
from tests.engine.support.law import Law, chi_square, exact_law, marginal
from vllm_medusa.runner.v1 import accept
from vllm_medusa.verify import verify_exact

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner(
        "v1", reason="thousands of draws; V2's are plain vLLM's, see test_seeds.py"
    ),
]

DRAWS = 6000
TOP_K = 6
LENGTH = 4
TEMPERATURE = 1.0
# A right implementation fails once in 10,000 choices of the seed.
P_VALUE = 1e-4

LawAt = Callable[[float], Law]
"""The exact law at a temperature."""


@pytest.fixture(scope="module")
def prompt(prompts: list[list[int]]) -> list[int]:
    """Across a block boundary, so that tree rows of one step lie in two blocks."""
    return next(p for p in prompts if len(p) > 40)[:30]


@pytest.fixture(scope="module")
def law_at(llama: TinyModel, prompt: list[int]) -> LawAt:
    @cache
    def law(temperature: float) -> Law:
        return exact_law(
            llama.path, prompt, LENGTH, top_k=TOP_K, temperature=temperature
        )

    return law


def run(llama: TinyModel, prompt: list[int], seed: int | None) -> list[tuple[int, ...]]:
    """Draw continuations with Medusa."""
    params = SamplingParams(
        n=DRAWS,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        # Enough room for trees up to the last token that is looked at.
        max_tokens=LENGTH + 1,
        ignore_eos=True,
        seed=seed,
        detokenize=False,
    )
    with engine(
        llama.path,
        {"model": llama.heads, "tree": "optimal:12"},
        max_num_seqs=64,
        # No prompt in pieces: vLLM can't rewind a CPU generator.
        max_num_batched_tokens=4096,
    ) as llm:
        (output,) = generate(llm, [prompt], params)
        counters = stats(llm)
    # Many draws came out of a tree, and not only of its first branch.
    assert counters["accepted"] > 0.2 * counters["trees"]
    assert counters["moved"] > 0.05 * counters["trees"]
    return [tuple(completion.token_ids[:LENGTH]) for completion in output.outputs]


@pytest.fixture(scope="module", params=[None, 11], ids=["engine seed", "request seed"])
def samples(
    request: pytest.FixtureRequest, llama: TinyModel, prompt: list[int]
) -> list[tuple[int, ...]]:
    return run(llama, prompt, request.param)


@pytest.mark.parametrize(
    "positions",
    [slice(0, 3), slice(1, 4), slice(0, 2), slice(2, 4)],
    ids=["first three", "last three", "first two", "last two"],
)
def test_joint_law(
    samples: list[tuple[int, ...]], law_at: LawAt, positions: slice
) -> None:
    cells = [sample[positions] for sample in samples]
    assert len(cells) == DRAWS
    assert chi_square(cells, marginal(law_at(TEMPERATURE), positions)) > P_VALUE


@pytest.mark.parametrize("temperature", [0.8, 1.25])
def test_other_temperature_is_told_apart(
    samples: list[tuple[int, ...]], law_at: LawAt, temperature: float
) -> None:
    """The test has power: the law at a temperature near by is refused."""
    cells = [sample[:3] for sample in samples]
    assert chi_square(cells, marginal(law_at(temperature), slice(0, 3))) < P_VALUE


def test_wrong_acceptance_is_told_apart(
    llama: TinyModel, prompt: list[int], law_at: LawAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test has power: it refuses an engine that, in one of seven trees, accepts the
    best child of the root unseen, as a rule that accepts too easily would."""
    generator = torch.Generator().manual_seed(0)

    def careless(tokens: torch.Tensor, drawn: torch.Tensor, *rest: Any) -> Any:
        unseen = torch.rand(len(tokens), generator=generator) < 1 / 7
        drawn = drawn.clone()
        drawn[unseen, 0] = tokens[unseen, 1]
        return verify_exact(tokens, drawn, *rest)

    monkeypatch.setattr(accept, "verify_exact", careless)
    cells = [path[:3] for path in run(llama, prompt, seed=None)]
    assert chi_square(cells, marginal(law_at(TEMPERATURE), slice(0, 3))) < P_VALUE
