# SPDX-License-Identifier: Apache-2.0
"""Turns of the user that the model writes (Magpie, arXiv 2406.08464)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_medusa.distill.requests import Request
from vllm_medusa.prompts import UserHeader, normalised, user_header

SHORTEST_PROMPT, LONGEST_PROMPT = 12, 700
"""Characters; what the model writes outside these is rarely a usable prompt."""
SHORTEST_REPLY = 3
"""Characters of a later turn, such as "Why?"."""

WRITING_TEMPERATURES = (0.8, 0.9, 1.0)
"""Temperatures at which the model writes as the user, in turn."""


class UserWriter:
    """Asks for a user's turn, and reads it.

    Args:
        tokenizer: of the model, with a chat template that shows where a user's words
            end.
        end_token_ids: that end a turn.
        max_tokens: longest turn.

    Raises:
        ConfigError: as `user_header`.
    """

    def __init__(
        self, tokenizer: Any, end_token_ids: Sequence[int], max_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        end = self.header(()).end
        first = list(tokenizer.encode(end, add_special_tokens=False))[:1]
        # vLLM looks for the text of the end among plain text, where special tokens
        # don't show.
        special = [i for i in first if i in set(tokenizer.all_special_ids)]
        self._stops = tuple(sorted({*end_token_ids, *special}))

    def header(self, messages: Sequence[Mapping[str, str]]) -> UserHeader:
        """What frames the words of the user after `messages`."""
        return user_header(self._tokenizer, messages)

    def request(self, header: UserHeader, seed: int) -> Request:
        """Ask for the words after `header`."""
        return Request(
            header.token_ids,
            seed,
            self._max_tokens,
            self._stops,
            WRITING_TEMPERATURES[seed % len(WRITING_TEMPERATURES)],
            stop=header.end,
        )

    def read(
        self, header: UserHeader, token_ids: Sequence[int], earlier: Sequence[str] = ()
    ) -> str | None:
        """The text of a turn, or None if it is unusable.

        It must have come to its end, be of a usual length, hold a letter and no
        special token or broken character, and repeat no `earlier` turn.
        """
        ids = list(token_ids)
        is_finished = bool(ids) and ids[-1] in self._stops
        if is_finished:
            ids.pop()
        if any(token in self._tokenizer.all_special_ids for token in ids):
            return None
        text, end, _ = self._tokenizer.decode(ids).partition(header.end)
        text = text.strip()
        shortest = SHORTEST_REPLY if earlier else SHORTEST_PROMPT
        is_usable = (
            (is_finished or end)
            and shortest <= len(text) <= LONGEST_PROMPT
            and "\ufffd" not in text
            and any(character.isalpha() for character in text)
            and normalised(text) not in map(normalised, earlier)
        )
        return text if is_usable else None
