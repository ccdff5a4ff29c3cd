# SPDX-License-Identifier: Apache-2.0
"""A work folder goes on with the same model and the same included answers only."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_medusa.errors import ConfigError
from vllm_medusa.train.answers import Answer, cut_partial_line
from vllm_medusa.train.origin import FILE, include
from vllm_medusa.train.store import AnswerStore

INCLUDED = [Answer(f"p{n}", [n], [1]) for n in range(4)]


def begun(folder: Path) -> AnswerStore:
    include(AnswerStore(folder), INCLUDED, "model")
    store = AnswerStore(folder)
    assert store.answers == INCLUDED
    return store


def test_goes_on_behind_the_included_answers(tmp_path: Path) -> None:
    generated = Answer("generated", [9], [1])
    begun(tmp_path).add([generated])
    include(store := AnswerStore(tmp_path), INCLUDED, "model")
    assert store.answers == AnswerStore(tmp_path).answers == [*INCLUDED, generated]


def test_interrupted_inclusion_is_completed(tmp_path: Path) -> None:
    path = begun(tmp_path).path
    path.write_bytes(path.read_bytes()[:-60])
    cut_partial_line(path)
    assert 0 < len(AnswerStore(tmp_path).answers) < 4
    begun(tmp_path)


@pytest.mark.parametrize("included", [[], INCLUDED[:3], [*INCLUDED, INCLUDED[0]]])
def test_other_included_answers_are_refused(tmp_path: Path, included) -> None:
    begun(tmp_path)
    with pytest.raises(ConfigError, match="began with 4 answers"):
        include(AnswerStore(tmp_path), included, "model")


def test_another_model_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(ConfigError, match="of the model model, not of other"):
        include(AnswerStore(tmp_path), INCLUDED, "other")


def test_a_store_that_does_not_say_is_compared(tmp_path: Path) -> None:
    (begun(tmp_path).folder / FILE).unlink()
    with pytest.raises(ConfigError, match="other answers"):
        include(AnswerStore(tmp_path), INCLUDED[1:], "model")
    begun(tmp_path)


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(ConfigError, match="is damaged"):
        include(AnswerStore(tmp_path), INCLUDED, "model")
