# SPDX-License-Identifier: Apache-2.0
"""Acceptance schemes that requests ask for, and what is refused.

Laws, thresholds and logprobs are in test_schemes_on_v1.py and test_schemes_on_v2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from tests.engine.support.parameters import TREE
from tests.runner import RUNNER, sample, slow_on_v2

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((16, 24), (4, 12))
TYPICAL = {"medusa_acceptance": "typical"}
LOOSE = {**TYPICAL, "medusa_epsilon": 0.001, "medusa_delta": "none"}
# No seeded prompt in pieces: vLLM's V1 can't rewind a CPU generator.
UNCHUNKED = {"max_num_batched_tokens": 4096}


def drawn(index: int, **options: Any) -> SamplingParams:
    return SamplingParams(
        temperature=1.0,
        seed=300 + index,
        max_tokens=LENGTH,
        ignore_eos=True,
        **options,
    )


@pytest.fixture(scope="module")
def seeded(llama: TinyModel, prompts: list[list[int]]) -> list[list[int]]:
    """Plain vLLM's seeded texts."""
    with engine(llama.path, **UNCHUNKED) as llm:
        params = [drawn(index) for index in range(COUNT)]
        return token_ids(generate(llm, prompts[:COUNT], params))


@pytest.fixture(scope="module")
def exact(llama: TinyModel, seeded: list[list[int]]) -> Iterator[LLM]:
    """An engine whose requests are exact unless they ask for something else."""
    with engine(llama.path, {"model": llama.heads, "tree": TREE}, **UNCHUNKED) as llm:
        yield llm


def test_typical_by_request(
    exact: LLM,
    prompts: list[list[int]],
    plain: list[list[int]],
    seeded: list[list[int]],
) -> None:
    """Typical requests change nothing for the exact ones beside them, and at
    temperature 0 they are exact themselves."""
    kinds = (
        [greedy(LENGTH)] * COUNT,
        [greedy(LENGTH, extra_args=LOOSE)] * COUNT,
        [drawn(index) for index in range(COUNT)],
        [drawn(index, extra_args=LOOSE) for index in range(COUNT)],
    )
    chosen = [prompt for prompt in prompts[:COUNT] for _ in kinds]
    params = [kind[index] for index in range(COUNT) for kind in kinds]
    texts = token_ids(generate(exact, chosen, params))
    counters = stats(exact)
    expected = [text[:LENGTH] for text in plain[:COUNT]]
    assert texts[0::4] == expected
    assert texts[1::4] == expected
    alone = token_ids(generate(exact, prompts[:COUNT], kinds[2]))
    assert texts[2::4] == alone
    if RUNNER == "v2":
        assert alone == seeded
    assert texts[3::4] != alone
    assert counters["accepted"] > 0


@slow_on_v2
def test_low_threshold_accepts_more(exact: LLM, prompts: list[list[int]]) -> None:
    """Per tree, than exact acceptance and than a threshold that is hardly met."""
    strict = {**LOOSE, "medusa_epsilon": 0.9}
    rates = []
    for extra_args in (strict, None, LOOSE):
        before = stats(exact)
        params = [drawn(index, extra_args=extra_args) for index in range(COUNT)]
        generate(exact, prompts[:COUNT], params)
        after = stats(exact)
        accepted, trees = (after[k] - before[k] for k in ("accepted", "trees"))
        rates.append(accepted / trees)
    assert rates[0] < rates[1] < rates[2]


REFUSED = [
    ({"medusa_acceptance": "greedy"}, "medusa_acceptance is 'greedy'"),
    ({**TYPICAL, "medusa_epsilon": 1.5}, "medusa_epsilon is '1.5'"),
    ({**TYPICAL, "medusa_epsilon": "0.1"}, "medusa_epsilon is '0.1'"),
    ({**TYPICAL, "medusa_delta": 0}, "medusa_delta is '0'"),
    ({**TYPICAL, "medusa_first_token": "best"}, "medusa_first_token is 'best'"),
    ({"medusa_acceptance": "rejection"}, "start it with acceptance=rejection"),
    ({"medusa_epsilom": 0.1}, "did you mean 'medusa_epsilon'"),
]


@pytest.mark.parametrize(("extra_args", "words"), REFUSED)
def test_refused_requests(
    exact: LLM,
    prompts: list[list[int]],
    plain: list[list[int]],
    extra_args: dict[str, Any],
    words: str,
) -> None:
    """The class that vLLM's server answers with status 400; the engine goes on."""
    with pytest.raises(VLLMValidationError, match=words):
        generate(exact, prompts[:1], drawn(0, extra_args=extra_args))
    assert token_ids(generate(exact, prompts[:1], greedy(4))) == [plain[0][:4]]


def test_arguments_of_others_pass(exact: LLM, prompts: list[list[int]]) -> None:
    (text,) = token_ids(
        generate(exact, prompts[:1], drawn(0, extra_args={"another_plugin": [1]}))
    )
    assert len(text) == LENGTH
