# SPDX-License-Identifier: Apache-2.0
"""What an evaluation asks: prompts, with reference answers where there are some."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_medusa.errors import ConfigError

_FORM = (
    'a prompt line is an object with a text "prompt", a non-empty list "turns", or a '
    'list "messages" of {"role", "content"}, and may have a text "reference" and a '
    'text "category" (or "task")'
)


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        name: unique among the prompts: its category and its number.
        messages: of the conversation to go on with, `{"role": …, "content": …}` each.
        reference: an answer to compare with, or None.
        category: kind of task, or None.
    """

    name: str
    messages: tuple[dict[str, str], ...]
    reference: str | None = None
    category: str | None = None


def read_evaluation_prompts(path: Path) -> list[Prompt]:
    """Read JSON lines with a prompt each; blank lines are skipped.

    A line holds the text under "prompt", a list under "turns" of which the first is
    asked (the form of MT-bench's questions), or a conversation under "messages";
    beside it "reference" and "category", also called "task", where there are any.

    Raises:
        ConfigError: the file can't be read or is empty, or a line is malformed;
            names the line's number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # a NUL byte, or no UTF-8
        raise ConfigError(f"can't read the prompts from {path}: {error}") from None
    prompts = [
        _parse(line, number, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise ConfigError(f"{path} holds no prompt: {_FORM}")
    return prompts


def default_prompts(per_category: int) -> list[Prompt]:
    """The first questions of each MT-bench category, with GPT-4's answers as
    references where MT-bench has them (reasoning, math, coding).

    Raises:
        ConfigError: the package with the questions is not installed.
    """
    from vllm_medusa.evaluation.questions import load_questions, reference_answers

    try:
        questions, references = load_questions(per_category), reference_answers()
    except FileNotFoundError as error:
        raise ConfigError(f"{error}, or give --prompts") from None
    return [
        Prompt(
            question.name,
            _user_turn(question.turns[0]),
            references.get(question.number),
            question.category,
        )
        for question in questions
    ]


def _parse(line: str, number: int, where: str) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: {_FORM}")
    messages = _messages(record)
    if messages is None:
        raise ConfigError(f"{where}: {_FORM}")
    category = _text(record, "category", where) or _text(record, "task", where)
    return Prompt(
        f"{category or 'prompt'}-{number}",
        messages,
        _text(record, "reference", where),
        category,
    )


def _messages(record: dict[str, Any]) -> tuple[dict[str, str], ...] | None:
    given = record.get("messages")
    if given is not None:
        is_valid = (
            isinstance(given, list)
            and given
            and all(
                isinstance(message, dict)
                and isinstance(message.get("role"), str)
                and isinstance(message.get("content"), str)
                for message in given
            )
        )
        if not is_valid:
            return None
        return tuple({key: m[key] for key in ("role", "content")} for m in given)
    text, turns = record.get("prompt"), record.get("turns")
    if text is None and isinstance(turns, list) and turns:
        text = turns[0]
    if not isinstance(text, str) or not text.strip():
        return None
    return _user_turn(text)


def _user_turn(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def _text(record: dict[str, Any], key: str, where: str) -> str | None:
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f'{where}: "{key}" must be a text that is not empty')
    return value
