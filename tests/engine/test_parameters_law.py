# SPDX-License-Identifier: Apache-2.0
"""On Model Runner V1 a drawn text has plain vLLM's law whatever processes its logits.

Two samples are compared by a chi-square test of the joint law of three tokens. Seeds
are fixed: a test that passes keeps passing.
"""

from __future__ import annotations

from typing import Any

import pytest
from vllm import SamplingParams

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, stats
from tests.engine.support.law import same_law
from tests.engine.support.parameters import TREE

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v1", reason="V2's seeded text is plain vLLM's own"),
]

LENGTH, DRAWS = 4, 2500
# A right implementation fails once in 10,000 choices of the seed.
P_VALUE = 1e-4
PROCESSED: dict[str, Any] = {
    "top_k": 5,
    "min_p": 0.01,
    "presence_penalty": 1.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.2,
    "bad_words": ["e", "ba"],
}


def _draw(
    llama: TinyModel,
    prompt: list[int],
    medusa: dict[str, Any] | None,
    seed: int | None,
    **options: Any,
) -> list[tuple[int, ...]]:
    """Draw continuations, with Medusa if `medusa` holds its options."""
    params = SamplingParams(
        n=DRAWS,
        # Enough room for trees up to the last token that is looked at.
        max_tokens=LENGTH + 1,
        ignore_eos=True,
        seed=seed,
        **options,
    )
    # No prompt in pieces: vLLM can't rewind a CPU generator.
    options = {"max_num_seqs": 64, "max_num_batched_tokens": 4096}
    with engine(llama.path, medusa, **options) as llm:
        (output,) = generate(llm, [prompt], params)
        if medusa is not None:
            counters = stats(llm)
            assert counters["accepted"] > 0.1 * counters["trees"]
            assert counters["moved"] > 0
    return [tuple(c.token_ids[:LENGTH]) for c in output.outputs]


def test_law(llama: TinyModel, prompts: list[list[int]]) -> None:
    """Thousands of draws with all kinds of processing have plain vLLM's law."""
    # Drawn text repeats what the prompt ends with: penalties change its law.
    prompt = (prompts[0] + prompts[0])[:40]
    expected = _draw(llama, prompt, None, None, **PROCESSED)
    unprocessed = _draw(llama, prompt, None, 5, top_k=5, min_p=0.01)
    medusa = {"model": llama.heads, "tree": TREE}
    for seed in (None, 11):
        texts = _draw(llama, prompt, medusa, seed, **PROCESSED)
        for part in (slice(0, 3), slice(1, 4)):
            mine, theirs, other = (
                [text[part] for text in of] for of in (texts, expected, unprocessed)
            )
            assert same_law(mine, theirs) > P_VALUE
            # The test has power: penalties change the law.
            assert same_law(mine, other) < P_VALUE
