# SPDX-License-Identifier: Apache-2.0
"""Conversations from files of prompts and of ShareGPT's form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_medusa.distill.conversation import Conversation
from vllm_medusa.errors import ConfigError
from vllm_medusa.prompts import read_json_lines, read_prompts
from vllm_medusa.wording import show

USER_ROLES = ("human", "user")
SYSTEM_ROLE = "system"

_FORM = (
    'a conversation is an object with a list "conversations" of {"from", "value"} or '
    '"messages" of {"role", "content"}'
)


def prompt_conversations(path: Path, label: str, task: str) -> list[Conversation]:
    """One conversation per prompt of a file.

    Raises:
        ConfigError: as `read_prompts`.
    """
    return [
        Conversation(f"{label}/{number}", label, task, (prompt,))
        for number, prompt in enumerate(read_prompts(path))
    ]


def sharegpt_conversations(path: Path, label: str, task: str) -> list[Conversation]:
    """The user's side of each conversation of a file, and its system message.

    The file is a JSON list, or JSON lines. Conversations without a user's text are
    left out.

    Raises:
        ConfigError: the file can't be read, or a record is malformed.
    """
    found = []
    for number, (record, where) in enumerate(_records(path)):
        messages = None
        if isinstance(record, dict):
            messages = record.get("conversations", record.get("messages"))
        if not isinstance(messages, list):
            raise ConfigError(f"{where}: {_FORM}, not {show(record)}")
        turns, system = user_side(messages, where)
        if turns:
            name = f"{label}/{number}"
            found.append(Conversation(name, label, task, turns, system, is_open=False))
    if not found:
        raise ConfigError(f"{path} holds no conversation with a user's text")
    return found


def user_side(messages: list[Any], where: str) -> tuple[tuple[str, ...], str | None]:
    """The texts of the user in a list of messages, and the system's if there is one.

    What the assistant said there is left out: the model answers itself.

    Raises:
        ConfigError: a message is not {"from", "value"} or {"role", "content"}.
    """
    turns, system = [], None
    for message in messages:
        role = text = None
        if isinstance(message, dict):
            role = message.get("from", message.get("role"))
            text = message.get("value", message.get("content"))
        if not isinstance(role, str):
            raise ConfigError(f"{where}: {_FORM}, not {show(message)}")
        # Published sets have messages without a text; the next turn would hang in
        # the air, so the conversation ends there.
        if role in USER_ROLES and (not isinstance(text, str) or not text.strip()):
            break
        if role in USER_ROLES:
            turns.append(str(text))
        elif role == SYSTEM_ROLE and not turns and isinstance(text, str):
            system = text.strip() or None
    return tuple(turns), system


def _records(path: Path) -> Iterator[tuple[Any, str]]:
    if path.suffix == ".jsonl":
        yield from read_json_lines(path)
        return
    try:
        records = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not a JSON list ({error}); JSON lines are to end in .jsonl"
        ) from None
    if not isinstance(records, list):
        raise ConfigError(f"{path} holds {show(records)} instead of a list")
    for number, record in enumerate(records):
        yield record, f"{path}, conversation {number}"
