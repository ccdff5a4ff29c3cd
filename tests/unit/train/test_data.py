# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from tests.unit.train.test_pipeline import options
from vllm_medusa.errors import ConfigError
from vllm_medusa.train.answers import Answer, append_answers, read_answers
from vllm_medusa.train.data import counts, fit_rows, split
from vllm_medusa.train.split import EXCLUDED, HELD_OUT, TRAINING


def answers(prompts: list[str]) -> list[Answer]:
    return [Answer(prompt, [i, i], [1]) for i, prompt in enumerate(prompts)]


def test_a_prompt_is_on_one_side_only(tmp_path: Path) -> None:
    asked = answers([f"prompt {n % 50}" for n in range(100)])
    sides = split(asked, options(tmp_path))
    trained, kept = (
        {
            answer.prompt
            for answer, chosen in zip(asked, sides, strict=True)
            if chosen == s
        }
        for s in (TRAINING, HELD_OUT)
    )
    assert not trained & kept
    assert len(trained | kept) == 50
    assert 0.1 < sides.count(HELD_OUT) / 100 < 0.5
    found = counts(asked, sides)
    assert found["training_answers"] == sides.count(TRAINING)
    assert found["training_tokens"] == 2 * sides.count(TRAINING)
    assert found["held_out_tokens"] == 2 * sides.count(HELD_OUT)
    assert found["answers_by_source"] == {"file": sides.count(TRAINING)}


def test_evaluation_prompts_are_never_trained_on(tmp_path: Path) -> None:
    asked = answers([f"prompt {n}" for n in range(40)])
    questions = tmp_path / "questions.txt"
    # written a little differently
    questions.write_text("\n".join(f"  Prompt  {n}" for n in range(0, 40, 2)))
    sides = split(asked, options(tmp_path, evaluation_prompts=questions))
    assert [chosen == EXCLUDED for chosen in sides] == [True, False] * 20
    assert counts(asked, sides)["excluded_answers"] == 20


def test_a_conversation_is_on_one_side_only(tmp_path: Path) -> None:
    turns = [
        {"prompt": f"{turn} of {n}", "id": f"c/{n}", "sample": 0, "turn": turn}
        | {"answer_token_ids": [1]}
        for turn in (1, 0, 2)  # as other shards may have them
        for n in range(30)
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(map(json.dumps, turns)))
    asked = read_answers(file)
    assert {answer.opening for answer in asked} == {f"0 of {n}" for n in range(30)}
    store = tmp_path / "store.jsonl"
    append_answers(store, asked)
    assert read_answers(store) == asked
    sides = split(asked, options(tmp_path))
    assert {HELD_OUT, TRAINING} == set(sides)
    assert sides[:30] == sides[30:60] == sides[60:]


def test_conversations_with_any_evaluation_turn_are_excluded(tmp_path: Path) -> None:
    asked = answers([f"prompt {n}" for n in range(40)])
    asked.append(Answer("thanks", [1], [1], first_prompt="prompt 7"))
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"turns": ["prompt 3", "Thanks"]}))
    sides = split(asked, options(tmp_path, evaluation_prompts=questions))
    assert [n for n, chosen in enumerate(sides) if chosen == EXCLUDED] == [3, 7, 40]


def test_too_few_answers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too few"):
        split(answers(["only one"]), options(tmp_path))


def test_answers_are_cut_to_a_row() -> None:
    given = [
        Answer("short", [1] * 3, [2] * 3),
        Answer("long", [1] * 9, [2] * 3),
        Answer("no room", [1], [2] * 8),
    ]
    fitting, left_out = fit_rows(given, "needed by none", 8)
    assert fitting == [given[0], Answer("long", [1] * 5, [2] * 3)]
    assert left_out == {"shortened_answers": 1, "dropped_answers": 1}
