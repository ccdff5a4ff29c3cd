# SPDX-License-Identifier: Apache-2.0
"""What the model is asked, before it has answered."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversation:
    """The user's side of a conversation.

    Attributes:
        name: unique in the run: the source's label and a number.
        source: label of the source.
        task: what its answers are counted as.
        user_turns: texts of the user; none if the model is to write the first one.
        system: text of the system's message, None for the template's own.
        is_open: whether the model goes on as the user where `user_turns` end.
        position: its place in the order of its source.
    """

    name: str
    source: str
    task: str
    user_turns: tuple[str, ...]
    system: str | None = None
    is_open: bool = True
    position: int = 0
