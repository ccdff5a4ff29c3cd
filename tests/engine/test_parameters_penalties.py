# SPDX-License-Identifier: Apache-2.0
"""Penalties: each row counts the prompt, the text so far and its own path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import greedy
from tests.engine.support.parameters import Comparison, Requests, compared
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((12, 32), (3, 16))
PENALTIES: dict[str, dict[str, Any]] = {
    "presence": {"presence_penalty": 2.0},
    "frequency": {"frequency_penalty": 1.6},
    "repetition": {"repetition_penalty": 1.6},
    # A token once on the path is then likelier.
    "negative presence": {"presence_penalty": -2.0},
    "repetition below 1": {"repetition_penalty": 0.6},
    "all": {
        "presence_penalty": 0.8,
        "frequency_penalty": 0.6,
        "repetition_penalty": 1.2,
    },
}


@pytest.fixture(scope="module")
def comparison(
    llama: TinyModel,
    prompts: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Comparison]:
    cases = {
        name: [
            greedy(LENGTH, logprobs=3 if index % 2 else None, **options)
            for index in range(COUNT)
        ]
        for name, options in PENALTIES.items()
    }
    requests = Requests.of(prompts[:COUNT], LENGTH, cases)
    with compared(llama.path, requests, tmp_path_factory.mktemp("heads")) as comparison:
        yield comparison


@pytest.mark.parametrize("name", PENALTIES)
def test_alone(comparison: Comparison, name: str) -> None:
    comparison.check_alone(name)
    assert comparison.num_changed(name) > COUNT // 4


def test_mixed(comparison: Comparison) -> None:
    comparison.check_mixed()
