# SPDX-License-Identifier: Apache-2.0
"""Answers as JSON lines: the record of what was generated."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from vllm_medusa.errors import ConfigError
from vllm_medusa.files import writing
from vllm_medusa.prompts import whole_characters


@dataclass(frozen=True)
class Answer:
    """One prompt and the base model's answer to it.

    Attributes:
        prompt: the user's text.
        answer_token_ids: the answer, with the end-of-turn token if it came.
        prompt_token_ids: the framed prompt; empty if it must be made again.
        source: where the prompt came from: "written", "template" or a file's name.
        temperature: at which the answer was drawn.
        finish: vLLM's finish reason, "stop" or "length".
        first_prompt: the conversation's first user text; None: `prompt`.
    """

    prompt: str
    answer_token_ids: list[int]
    prompt_token_ids: list[int]
    source: str = "file"
    temperature: float = 0.0
    finish: str | None = None
    first_prompt: str | None = None

    @property
    def opening(self) -> str:
        """What tells its conversation from others: the user's first text."""
        return self.prompt if self.first_prompt is None else self.first_prompt


_FIELDS = {field.name for field in fields(Answer)}


SHARDS = "answers-*.jsonl"
"""Files of a folder that `vllm-medusa distill` filled."""


def read_answers(path: str | Path) -> list[Answer]:
    """Read a file of answers, or a folder of shards in the order of their names.

    Of the keys that `Answer` does not know, `id`, `sample` and `turn` tell which
    answers are of one conversation, and give them its `first_prompt`.

    Raises:
        ConfigError: there is no such file, no shard in the folder, or a line is
            malformed; names the line.
    """
    file = Path(path)
    files = [file]
    if file.is_dir():
        files = sorted(file.glob(SHARDS))
        if not files:
            raise ConfigError(f"the folder {path} holds no {SHARDS}")
    lines = [line for each in files for line in _read_lines(each)]
    first: dict[str, _Line] = {}
    for line in lines:
        if line.conversation is not None:
            known = first.setdefault(line.conversation, line)
            if line.turn < known.turn:
                first[line.conversation] = line
    return [
        line.answer
        if line.conversation is None or first[line.conversation] is line
        else replace(line.answer, first_prompt=first[line.conversation].answer.prompt)
        for line in lines
    ]


@dataclass(frozen=True)
class _Line:
    """A line of a file; `conversation` is None if it does not tell."""

    answer: Answer
    conversation: str | None
    turn: float


def _read_lines(file: Path) -> Iterator[_Line]:
    if not file.is_file():
        raise ConfigError(f"answers file {file} does not exist")
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _parse_line(line, f"{file}, line {number}")


def _parse_line(line: str, where: str) -> _Line:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: an answer is an object, not {record!r:.40}")
    known: dict[str, Any] = {k: v for k, v in record.items() if k in _FIELDS}
    if known.get("prompt_token_ids") is None:
        known["prompt_token_ids"] = []
    for name in ("answer_token_ids", "prompt_token_ids"):
        ids = known.get(name)
        if not isinstance(ids, list) or any(
            type(token) is not int or token < 0 for token in ids
        ):
            raise ConfigError(f"{where}: {name!r} must be a list of token ids")
    if not isinstance(known.get("prompt"), str):
        raise ConfigError(f"{where}: 'prompt' must be a text")
    if not known["answer_token_ids"]:
        raise ConfigError(f"{where}: the answer is empty")
    if not isinstance(known.get("first_prompt"), str | None):
        raise ConfigError(f"{where}: 'first_prompt' must be a text")
    for name in ("prompt", "first_prompt"):
        if known.get(name) is not None:
            known[name] = whole_characters(known[name])
    conversation, turn = record.get("id"), record.get("turn")
    return _Line(
        Answer(**known),
        None
        if conversation is None
        else json.dumps([conversation, record.get("sample")]),
        turn if isinstance(turn, int | float) else 0,
    )


def append_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Append answers and force them to the disk.

    Raises:
        OutputError: there is no room; a part of the last line may stand there.
    """
    with writing(path), path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(answer)) + "\n" for answer in answers)
        stream.flush()
        os.fsync(stream.fileno())


def cut_partial_line(path: Path) -> None:
    """Remove a last line without its newline: its writer was interrupted."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as stream:
            stream.truncate(whole)
