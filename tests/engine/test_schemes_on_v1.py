# SPDX-License-Identifier: Apache-2.0
"""Acceptance schemes on Model Runner V1, beside one another in one batch."""

from __future__ import annotations

from typing import Any

import pytest
from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.compare import TOLERANCE
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from tests.engine.support.law import chi_square, exact_law, marginal

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v1", reason="V2 has an implementation of its own"),
]

COUNT, LENGTH = 16, 24
TREE = "optimal:12"
# A plain threshold that no candidate reaches, and one that all above 1% do.
STRICT = {"medusa_epsilon": 1 - 1e-6, "medusa_delta": "none"}
LOOSE = {"medusa_epsilon": 0.01, "medusa_delta": "none"}
GREEDY_ROOTS = {"medusa_first_token": "greedy"}
# No seeded prompt in pieces: vLLM can't rewind a CPU generator.
UNCHUNKED = {"max_num_batched_tokens": 4096}


def drawn(index: int, **options: Any) -> SamplingParams:
    """Parameters of one request; each third one's logits depend on the text."""
    return SamplingParams(
        **{
            "temperature": 0.9,
            "top_k": 12,
            "seed": 500 + index if index % 2 else None,
            "max_tokens": LENGTH,
            "ignore_eos": True,
            "logprobs": 0,
            "presence_penalty": 0.8 if index % 3 == 0 else 0.0,
            **options,
        }
    )


@pytest.mark.parametrize("acceptance", ["typical", "rejection"])
@pytest.mark.parametrize("blocks", [None, 40], ids=["", "preempted"])
def test_beside_greedy_requests(
    llama: TinyModel,
    prompts: list[list[int]],
    plain: list[list[int]],
    acceptance: str,
    blocks: int | None,
) -> None:
    """Greedy requests, and those that ask for exact acceptance, alternate with such of
    the engine's own scheme. All logprobs are those of the emitted tokens, as the model
    scores the whole text."""
    exact = {"medusa_acceptance": "exact"}
    chosen, params = [], []
    for index, prompt in enumerate(prompts[:COUNT]):
        chosen += [prompt] * 3
        params += [greedy(LENGTH), drawn(index), drawn(index, extra_args=exact)]
    medusa = {
        "model": llama.heads,
        "tree": TREE,
        "acceptance": acceptance,
        # Drafts of a request may have been proposed in a step of other depth.
        "num_speculative_tokens_per_batch_size": [[1, 4, 12], [5, 10, 5], [11, 16, 2]],
    }
    options = {"num_gpu_blocks_override": blocks, **UNCHUNKED}
    with engine(llama.path, medusa, **options) as llm:
        outputs = generate(llm, chosen, params)
        counters = stats(llm)
    assert token_ids(outputs[::3]) == [text[:LENGTH] for text in plain[:COUNT]]
    assert counters["accepted"] > 0.2 * counters["trees"]
    assert counters["moved"] > 0

    whole = [
        prompt + list(output.outputs[0].token_ids)
        for prompt, output in zip(chosen, outputs, strict=True)
    ]
    with engine(llama.path) as llm:
        scored = generate(llm, whole, SamplingParams(max_tokens=1, prompt_logprobs=0))
    for output, score in zip(outputs, scored, strict=True):
        emitted = output.outputs[0]
        if emitted.logprobs is None:
            continue
        for token, mine, other in zip(
            emitted.token_ids,
            emitted.logprobs,
            score.prompt_logprobs[-LENGTH:],
            strict=True,
        ):
            assert mine[token].logprob == pytest.approx(
                other[token].logprob, abs=TOLERANCE
            )


def test_typical_thresholds(llama: TinyModel, prompts: list[list[int]]) -> None:
    """The lower the threshold, the more is accepted; never a token that top-k
    excludes. A request that asks for nothing has the engine's own."""
    accepted = {}
    medusa = {"model": llama.heads, "tree": TREE, "acceptance": "typical"}
    options = {"logprobs_mode": "processed_logprobs", **UNCHUNKED}
    with engine(llama.path, medusa, **options) as llm:
        for name, asked in (("strict", STRICT), ("default", None), ("loose", LOOSE)):
            before = stats(llm)
            params = [drawn(index, extra_args=asked) for index in range(COUNT)]
            outputs = generate(llm, prompts[:COUNT], params)
            after = stats(llm)
            trees = after["trees"] - before["trees"]
            accepted[name] = (after["accepted"] - before["accepted"]) / trees
            assert all(
                output.outputs[0].cumulative_logprob > -float("inf")
                for output in outputs
            )
    assert accepted["strict"] < 0.05 < accepted["default"] < accepted["loose"]


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_first_token(
    llama: TinyModel, prompts: list[list[int]], penalty: float
) -> None:
    """Where nothing is accepted, each step emits its most probable token; only the
    prompt's own step has no tree and draws."""
    asked = {**STRICT, **GREEDY_ROOTS, "medusa_acceptance": "typical"}
    options = {"repetition_penalty": penalty, "ignore_eos": True}
    with engine(llama.path, {"model": llama.heads, "tree": TREE}) as llm:
        params = SamplingParams(
            temperature=0.9, max_tokens=LENGTH, extra_args=asked, **options
        )
        texts = token_ids(generate(llm, prompts[:COUNT], params))
    begun = [
        prompt + text[:1] for prompt, text in zip(prompts[:COUNT], texts, strict=True)
    ]
    with engine(llama.path) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=LENGTH - 1, **options)
        expected = token_ids(generate(llm, begun, params))
    assert [text[1:] for text in texts] == expected


@pytest.mark.parametrize("seed", [None, 3], ids=["engine seed", "request seed"])
def test_law_of_rejection(
    llama: TinyModel, prompts: list[list[int]], seed: int | None
) -> None:
    """Thousands of draws have the model's law, whatever was drawn from the heads."""
    draws, top_k = 4000, 4
    prompt = next(p for p in prompts if len(p) > 40)[:30]
    params = SamplingParams(
        n=draws,
        temperature=1.0,
        top_k=top_k,
        seed=seed,
        max_tokens=5,
        ignore_eos=True,
        detokenize=False,
    )
    medusa = {"model": llama.heads, "tree": TREE, "acceptance": "rejection"}
    with engine(llama.path, medusa, max_num_seqs=64, **UNCHUNKED) as llm:
        (output,) = generate(llm, [prompt], params)
        counters = stats(llm)
    assert counters["accepted"] > 0.2 * counters["trees"]
    assert counters["moved"] > 0.05 * counters["trees"]
    cells = [tuple(completion.token_ids[:4]) for completion in output.outputs]
    assert len(cells) == draws
    law = exact_law(llama.path, prompt, 4, top_k=top_k, temperature=1.0)
    for part in (slice(0, 2), slice(1, 3), slice(1, 4)):
        assert chi_square([cell[part] for cell in cells], marginal(law, part)) > 1e-4
    warmer = exact_law(llama.path, prompt, 4, top_k=top_k, temperature=1.4)
    assert chi_square(cells, warmer) < 1e-4
