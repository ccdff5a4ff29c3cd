# SPDX-License-Identifier: Apache-2.0
"""Structured outputs on tree rows: the text is plain vLLM's, and trees are accepted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from transformers import AutoTokenizer

from tests.engine.conftest import TinyModel
from tests.engine.support.grammars import (
    CASES,
    CONFIG,
    IS_WHOLE,
    LENGTH,
    forbid_errors,
)
from tests.engine.support.parameters import Comparison, Requests, compared
from tests.runner import sample

pytestmark = pytest.mark.engine

COUNT = sample(16, 3)


@pytest.fixture(autouse=True)
def no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_errors(monkeypatch)


@pytest.fixture(scope="module")
def both(
    llama: TinyModel,
    prompts: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Comparison]:
    cases = {name: [params] * COUNT for name, params in CASES.items()}
    requests = Requests.of(prompts[:COUNT], LENGTH, cases)
    folder = tmp_path_factory.mktemp("heads")
    with compared(llama.path, requests, folder, **CONFIG) as comparison:
        yield comparison


@pytest.mark.parametrize("name", CASES)
def test_alone(both: Comparison, name: str) -> None:
    both.check_alone(name)


def test_mixed(both: Comparison) -> None:
    both.check_mixed()


@pytest.mark.parametrize("name", CASES)
def test_expected_texts(both: Comparison, llama: TinyModel, name: str) -> None:
    """They are what the grammar describes, and not what the model says without it."""
    tokenizer = AutoTokenizer.from_pretrained(llama.path)
    assert both.num_changed(name) == COUNT
    for output in both.expected[name]:
        (completion,) = output.outputs
        assert completion.finish_reason == "stop"
        text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        assert IS_WHOLE[name](text), text
