# SPDX-License-Identifier: Apache-2.0
"""What is asked of an engine, whichever engine it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Request:
    """A text to go on with.

    Attributes:
        token_ids: the text so far.
        seed: of its own, so that its tokens depend on no other request.
        max_tokens: how many tokens to make at most.
        stop_token_ids: tokens that end it, such as the end of a turn.
        temperature: 0 is greedy.
        top_p: probability mass that is drawn from.
        top_k: number of tokens that are drawn from, 0 for all.
        stop: a text that ends it, or "".
    """

    token_ids: list[int]
    seed: int
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    stop: str = ""

    def sampling(self) -> dict[str, Any]:
        """Arguments of `vllm.SamplingParams`."""
        arguments: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "stop_token_ids": list(self.stop_token_ids),
            "detokenize": bool(self.stop),
        }
        if self.stop:
            arguments["stop"] = [self.stop]
        return arguments


class Engine(Protocol):
    """Answers requests; the tokens of each follow from the request alone."""

    def complete(self, requests: Sequence[Request]) -> list[list[int]]:
        """Tokens that go on with each request, with the one that ended it."""

    def close(self) -> None:
        """End it and free what it holds."""


def seed_of(*parts: object) -> int:
    """A number of 63 bits that differs wherever the parts do."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
