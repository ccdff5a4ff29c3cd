# SPDX-License-Identifier: Apache-2.0
"""Prompts: from files, and as the token ids that the chat template makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_medusa.errors import ConfigError

_MARK = "\u241fprompt\u241f"
"""Stands for the user's text when the chat template's header is looked for."""


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """Read prompts: a text file with one per line, or JSON lines (.jsonl, .json).

    In a text file lines that begin with `#` are comments. A JSON line holds the text
    under "prompt", or a list under "turns" of which the first is taken (the form of
    MT-bench's questions). Blank lines are skipped.

    Raises:
        ConfigError: as `read_conversations`.
    """
    return tuple(turns[0] for turns in read_conversations(path))


def read_conversations(path: str | Path) -> tuple[tuple[str, ...], ...]:
    """The user's turns of each prompt in a file that `read_prompts` takes.

    Halves of characters are replaced (see `whole_characters`).

    Raises:
        ConfigError: the file can't be read or holds no prompt, or a line is
            malformed; names the line's number.
    """
    file = Path(path)
    if file.suffix in (".jsonl", ".json"):
        conversations = tuple(
            _turns_of(record, where) for record, where in read_json_lines(file)
        )
    else:
        lines = (line.strip() for _, line in _lines(file))
        conversations = tuple((line,) for line in lines if not line.startswith("#"))
    if not conversations:
        raise ConfigError(f"{path} holds no prompt; write one a line")
    return conversations


def read_json_lines(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the value of each line that is not blank, and its place for messages.

    Raises:
        ConfigError: the file can't be read, or a line is not JSON.
    """
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            yield json.loads(line), where
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: not JSON: {error}") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line
    except (OSError, ValueError) as error:  # a NUL byte, or no UTF-8
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"can't read the prompts from {path}: {reason}") from None


def _turns_of(record: Any, where: str) -> tuple[str, ...]:
    turns: Any = None
    if isinstance(record, dict):
        text = record.get("prompt")
        turns = record.get("turns") if text is None else [text]
    if (
        not isinstance(turns, list)
        or not turns
        or not all(isinstance(turn, str) and turn.strip() for turn in turns)
    ):
        raise ConfigError(
            f'{where}: a prompt line is an object with a text "prompt" or a '
            'non-empty list "turns" of texts'
        )
    return tuple(map(whole_characters, turns))


def whole_characters(text: str) -> str:
    """`text` with U+FFFD for each half of a character.

    A text that was cut in a JSON file may end in one, and no tokenizer takes it.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def normalised(prompt: str) -> str:
    """`prompt` as it is compared with others: in lower case, with single spaces."""
    return " ".join(prompt.lower().split())


def user_turn_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return the ids of `prompt` as a user's turn, or as it is without a template."""
    return conversation_ids(tokenizer, [{"role": "user", "content": prompt}])


def conversation_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """Return the ids of `messages` up to where the answer begins.

    Without a template a single message is taken as it is.

    Raises:
        ConfigError: the model has no chat template and there are several messages.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        if len(messages) > 1:
            raise ConfigError(
                f"the model has no chat template for a conversation of {len(messages)} "
                "messages: give single prompts, or another model"
            )
        return list(tokenizer.encode(messages[0]["content"]))
    return list(
        tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=False
        )
    )


@dataclass(frozen=True)
class UserHeader:
    """Where the chat template puts a user's words.

    Attributes:
        token_ids: all before them: earlier turns, and the header of this one.
        end: text right after them.
    """

    token_ids: list[int]
    end: str


def user_header(
    tokenizer: Any, messages: Sequence[Mapping[str, str]] = ()
) -> UserHeader:
    """Return what frames the words of a user who speaks after `messages`.

    Given the header, an instruction-tuned model writes a user's turn of its own and
    ends it as the template does (Magpie, arXiv 2406.08464).

    Raises:
        ConfigError: the tokenizer has no chat template, or one that hides the text.
    """
    check_chat_template(tokenizer)
    text = tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": _MARK}],
        add_generation_prompt=True,
        tokenize=False,
    )
    head, mark, tail = text.rpartition(_MARK)
    end = tail.strip().split("\n")[0]
    if not mark or not end:
        raise ConfigError(
            "the chat template does not show where a user's text begins and ends, "
            "so the model cannot write prompts: give prompts of your own"
        )
    # The template writes the token that begins a text itself, if there is one.
    return UserHeader(list(tokenizer.encode(head, add_special_tokens=False)), end)


def check_chat_template(tokenizer: Any) -> None:
    """Refuse a tokenizer without a chat template.

    Raises:
        ConfigError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"the base model {getattr(tokenizer, 'name_or_path', '')!r} has no chat "
            "template: choose an instruction-tuned model, or add "
            "chat_template.jinja to its folder"
        )
