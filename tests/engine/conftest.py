# SPDX-License-Identifier: Apache-2.0
"""Tiny models, their heads and their plain text, each made once per session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.engine.support.engines import engine, generate, greedy, token_ids
from tests.engine.support.heads import FittedHeads, fit_heads, save_fitted
from tests.engine.support.models import VOCAB_SIZE, build_model
from tests.engine.support.prompts import random_prompts
from tests.runner import sample

PLAIN_TOKENS = sample(64, 32)
"""Length of each plain text: a shorter greedy text is its beginning."""


@dataclass(frozen=True)
class TinyModel:
    """A tiny base model and heads fitted to it."""

    family: str
    path: Path
    heads: Path
    fitted: FittedHeads


def make_tiny_model(family: str, folder: Path, **changes: Any) -> TinyModel:
    """Make a tiny model and its heads in `folder`; `changes` are to its config."""
    path = build_model(family, folder / "model", **changes)
    fitted = fit_heads(path)
    return TinyModel(family, path, save_fitted(fitted, folder / "heads"), fitted)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """Make the tiny model of a family with its heads, once."""

    @cache
    def make(family: str) -> TinyModel:
        return make_tiny_model(family, tmp_path_factory.mktemp(family))

    return make


@pytest.fixture(scope="session")
def llama(tiny: Callable[[str], TinyModel]) -> TinyModel:
    return tiny("llama")


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts of many lengths, the longest across several KV blocks."""
    return random_prompts(sample(120, 32), VOCAB_SIZE, longest=sample(150, 100))


@pytest.fixture(scope="session")
def plain(llama: TinyModel, prompts: list[list[int]]) -> list[list[int]]:
    """What vLLM without Medusa answers to `prompts`, greedily."""
    with engine(llama.path) as llm:
        return token_ids(generate(llm, prompts, greedy(PLAIN_TOKENS)))
