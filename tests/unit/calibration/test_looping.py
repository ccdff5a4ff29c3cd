# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_medusa.calibration.looping import (
    first_looping_position,
    length_without_loop,
)


def by_definition(tokens: list[int], window: int) -> int | None:
    for position in range(window - 1, len(tokens)):
        last = tokens[position - window + 1 : position + 1]
        for end in range(window - 1, position):
            if tokens[end - window + 1 : end + 1] == last:
                return position
    return None


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 8))
def test_agrees_with_the_definition(tokens: list[int], window: int) -> None:
    assert first_looping_position(tokens, window) == by_definition(tokens, window)


def test_a_repeated_sentence_loops_when_its_eighth_token_returns() -> None:
    sentence = list(range(10))
    assert first_looping_position(sentence + sentence) == 17
    assert length_without_loop(sentence + sentence) == 17


def test_one_token_over_and_over_overlaps_itself() -> None:
    assert first_looping_position([5] * 20) == 8


def test_an_answer_without_a_loop_keeps_its_length() -> None:
    assert first_looping_position(list(range(100))) is None
    assert length_without_loop(list(range(100))) == 100
    assert length_without_loop([]) == 0


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        first_looping_position([1, 2], 0)
