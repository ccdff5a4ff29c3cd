# SPDX-License-Identifier: Apache-2.0
"""Acceptance schemes on Model Runner V2, beside one another in one batch."""

from __future__ import annotations

from typing import Any

import pytest
from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import TOLERANCE
from tests.engine.support.engines import engine, generate, stats, token_ids
from tests.engine.support.law import chi_square, exact_law, marginal

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v2", reason="V1 has an implementation of its own"),
]

COUNT, LENGTH = 8, 12
TREE = "optimal:8"
# A plain threshold that no candidate reaches, and one that all above 1% do.
STRICT = {"medusa_epsilon": 1 - 1e-6, "medusa_delta": "none"}
LOOSE = {"medusa_epsilon": 0.01, "medusa_delta": "none"}


def seeded(index: int, extra_args: dict[str, Any] | None = None) -> SamplingParams:
    """Parameters of one request; of two thirds the logits depend on the text."""
    return SamplingParams(
        temperature=0.9,
        top_k=12,
        seed=500 + index,
        max_tokens=LENGTH,
        ignore_eos=True,
        logprobs=0,
        presence_penalty=0.8 if index % 3 == 0 else 0.0,
        bad_words=["e", "ba", "Z"] if index % 3 == 1 else None,
        extra_args=extra_args,
    )


@pytest.fixture(scope="module")
def texts(llama: TinyModel, prompts: list[list[int]]) -> list[list[int]]:
    """What plain vLLM answers."""
    with engine(llama.path) as llm:
        params = [seeded(index) for index in range(COUNT)]
        return token_ids(generate(llm, prompts[:COUNT], params))


@pytest.mark.parametrize(
    ("acceptance", "asked"),
    [
        ("typical", {"medusa_acceptance": "typical"}),
        pytest.param(
            "rejection", {"medusa_acceptance": "rejection"}, marks=pytest.mark.slow
        ),
    ],
)
def test_exact_requests_keep_their_text(
    llama: TinyModel,
    prompts: list[list[int]],
    texts: list[list[int]],
    acceptance: str,
    asked: dict[str, Any],
) -> None:
    """Exact requests alternate with such of another scheme. All logprobs are those of
    the emitted tokens, as the model scores the whole text."""
    exact = {"medusa_acceptance": "exact"}
    chosen = [prompt for prompt in prompts[:COUNT] for _ in range(2)]
    params = [
        seeded(index, extra_args)
        for index in range(COUNT)
        for extra_args in (exact, asked)
    ]
    medusa = {"model": llama.heads, "tree": TREE, "acceptance": acceptance}
    with engine(llama.path, medusa) as llm:
        outputs = generate(llm, chosen, params)
        counters = stats(llm)
    assert token_ids(outputs[::2]) == texts
    assert counters["accepted"] > 0.15 * counters["trees"]
    assert counters["moved"] > 0
    # Not all of the others' texts are those of exact acceptance.
    assert token_ids(outputs[1::2]) != texts

    whole = [
        prompt + list(output.outputs[0].token_ids)
        for prompt, output in zip(chosen, outputs, strict=True)
    ]
    with engine(llama.path) as llm:
        scored = generate(llm, whole, SamplingParams(max_tokens=1, prompt_logprobs=0))
    for output, score in zip(outputs, scored, strict=True):
        emitted = output.outputs[0]
        theirs = score.prompt_logprobs[-LENGTH:]
        for token, mine, other in zip(
            emitted.token_ids, emitted.logprobs, theirs, strict=True
        ):
            assert mine[token].logprob == pytest.approx(
                other[token].logprob, abs=TOLERANCE
            )


@pytest.mark.parametrize(
    "tree", [pytest.param(TREE, marks=pytest.mark.slow), "beam:3x3"]
)
def test_seeded_text_of_paths(
    llama: TinyModel, prompts: list[list[int]], texts: list[list[int]], tree: str
) -> None:
    """Also of trees that differ by request and step, whose rows the host can't know."""
    with engine(llama.path, {"model": llama.heads, "tree": tree}) as llm:
        params = [seeded(index) for index in range(COUNT)]
        outputs = generate(llm, prompts[:COUNT], params)
        counters = stats(llm)
    assert token_ids(outputs) == texts
    assert counters["accepted"] > 0.3 * counters["trees"]
    assert counters["moved"] > 0


def test_typical_thresholds(
    llama: TinyModel, prompts: list[list[int]], texts: list[list[int]]
) -> None:
    """If nothing is probable enough, a step emits the one draw of plain decoding. The
    lower the threshold, the more is accepted; never a token that top-k excludes."""
    accepted = {}
    medusa = {"model": llama.heads, "tree": TREE, "acceptance": "typical"}
    with engine(llama.path, medusa, logprobs_mode="processed_logprobs") as llm:
        for name, asked in (("strict", STRICT), ("default", {}), ("loose", LOOSE)):
            before = stats(llm)
            params = [seeded(index, asked) for index in range(COUNT)]
            outputs = generate(llm, prompts[:COUNT], params)
            after = stats(llm)
            trees = after["trees"] - before["trees"]
            accepted[name] = (after["accepted"] - before["accepted"]) / trees
            if name == "strict":
                assert token_ids(outputs) == texts
            assert all(
                output.outputs[0].cumulative_logprob > -float("inf")
                for output in outputs
            )
    assert accepted["strict"] < 0.2 < accepted["default"] < accepted["loose"]


def test_greedy_first_token(
    llama: TinyModel, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    """If nothing is accepted, a step emits its most probable token; only the
    prompt's own step has no tree and draws."""
    asked = {**STRICT, "medusa_acceptance": "typical", "medusa_first_token": "greedy"}
    params = [
        SamplingParams(
            temperature=0.9,
            seed=index,
            max_tokens=LENGTH,
            ignore_eos=True,
            extra_args=asked,
        )
        for index in range(COUNT)
    ]
    starts = [
        prompt + text[:1] for prompt, text in zip(prompts[:COUNT], plain, strict=False)
    ]
    with engine(llama.path, {"model": llama.heads, "tree": TREE}) as llm:
        outputs = token_ids(generate(llm, starts, params))
        first = [
            prompt + text[:1] for prompt, text in zip(starts, outputs, strict=True)
        ]
    with engine(llama.path) as llm:
        greedy = SamplingParams(temperature=0.0, max_tokens=LENGTH - 1, ignore_eos=True)
        expected = token_ids(generate(llm, first, greedy))
    assert [text[1:] for text in outputs] == expected


@pytest.mark.slow
def test_law_of_rejection(llama: TinyModel, prompts: list[list[int]]) -> None:
    """The tokens that trees emit have the model's law; thousands of draws, which the
    interpreter has no time for, are those of tests/unit/verify."""
    draws, top_k = 256, 3
    prompt = next(p for p in prompts if len(p) > 40)[:30]
    params = SamplingParams(
        n=draws,
        temperature=1.0,
        top_k=top_k,
        seed=3,
        max_tokens=4,
        ignore_eos=True,
        detokenize=False,
    )
    medusa = {"model": llama.heads, "tree": "optimal:5", "acceptance": "rejection"}
    with engine(llama.path, medusa, max_num_seqs=64) as llm:
        (output,) = generate(llm, [prompt], params)
        counters = stats(llm)
    assert counters["accepted"] > 0.2 * counters["trees"]
    cells = [tuple(completion.token_ids[:3]) for completion in output.outputs]
    assert len(cells) == draws
    law = exact_law(llama.path, prompt, 3, top_k=top_k, temperature=1.0)
    assert chi_square(cells, law) > 1e-4
    assert chi_square([cell[1:] for cell in cells], marginal(law, slice(1, 3))) > 1e-4
    warmer = exact_law(llama.path, prompt, 3, top_k=top_k, temperature=2.5)
    assert chi_square(cells, warmer) < 1e-4
