# SPDX-License-Identifier: Apache-2.0
"""Base models of other families: grouped queries, biases, windows, soft caps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from tests.engine.support.models import FAMILIES, VOCAB_SIZE
from tests.engine.support.prompts import random_prompts
from tests.runner import sample

pytestmark = pytest.mark.engine

LENGTH = sample(32, 20)


@pytest.mark.parametrize("family", sample(FAMILIES, ("mistral", "gemma2")))
def test_family(tiny: Callable[[str], TinyModel], family: str) -> None:
    """Prompts and texts longer than the sliding windows, trees with siblings."""
    model = tiny(family)
    prompts = random_prompts(sample(24, 10), VOCAB_SIZE, longest=90, seed=1)
    with engine(model.path) as llm:
        expected = token_ids(generate(llm, prompts, greedy(LENGTH)))
    with engine(model.path, {"model": model.heads, "tree": "optimal:10"}) as llm:
        assert token_ids(generate(llm, prompts, greedy(LENGTH))) == expected
        counters = stats(llm)
    assert counters["accepted"] > 0.5 * counters["trees"]
    assert counters["moved"] > 0
