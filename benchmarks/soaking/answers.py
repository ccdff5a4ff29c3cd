# SPDX-License-Identifier: Apache-2.0
"""Answers as they come in, compared with those of plain vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.soaking.asks import Ask

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

TOLERANCE = 1e-3
"""Of logprobs: rounding differs with the rows that are computed together."""


@dataclass
class Completion:
    """One completion of a request; `logprobs` are those of its own tokens, if asked."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Answer:
    """The completions of one request, gathered from its stream of deltas."""

    def __init__(self, count: int = 1) -> None:
        """`count` is the request's n."""
        self.completions = [Completion() for _ in range(count)]

    @property
    def num_tokens(self) -> int:
        """Tokens of all completions so far."""
        return sum(len(completion.tokens) for completion in self.completions)

    def add(self, output: RequestOutput) -> None:
        """Append what `output`, of kind DELTA, brought."""
        for delta in output.outputs:
            completion = self.completions[delta.index]
            completion.tokens += delta.token_ids
            completion.text += delta.text
            if delta.logprobs is not None:
                completion.logprobs += [
                    scores[token].logprob
                    for token, scores in zip(
                        delta.token_ids, delta.logprobs, strict=True
                    )
                ]
            completion.finish_reason = delta.finish_reason
            completion.stop_reason = delta.stop_reason

    def as_dict(self) -> list[dict[str, Any]]:
        """Plain types, for JSON."""
        return [asdict(completion) for completion in self.completions]


def read_answer(rows: Sequence[Mapping[str, Any]]) -> Answer:
    """Return the Answer that `as_dict` was called on."""
    answer = Answer()
    answer.completions = [Completion(**row) for row in rows]
    return answer


def fault(
    ask: Ask, mine: Answer, plain: Answer | None, is_cancelled: bool
) -> str | None:
    """Say what is wrong with an answer, None if nothing is.

    `plain` is what plain vLLM answered, None if the request is not exact. A cancelled
    answer must be the beginning of it.
    """
    for index, completion in enumerate(mine.completions):
        reason = _bad_shape(ask, completion, is_cancelled)
        if reason is None and plain is not None:
            reason = _difference(completion, plain.completions[index], is_cancelled)
        if reason is not None:
            return f"completion {index}: {reason}"
    return None


def _bad_shape(ask: Ask, mine: Completion, is_cancelled: bool) -> str | None:
    if len(mine.tokens) > ask.params["max_tokens"]:
        return f"{len(mine.tokens)} tokens, more than max_tokens"
    if is_cancelled:
        return None
    if mine.finish_reason not in ("stop", "length"):
        return f"finish reason {mine.finish_reason!r}"
    return None


def _difference(mine: Completion, plain: Completion, is_cancelled: bool) -> str | None:
    count = len(mine.tokens)
    if not is_cancelled and mine.tokens != plain.tokens:
        pairs = zip(mine.tokens, plain.tokens, strict=False)
        place = next(
            (i for i, (a, b) in enumerate(pairs) if a != b),
            min(count, len(plain.tokens)),
        )
        return f"tokens differ from number {place} on"
    if mine.tokens != plain.tokens[:count] or not plain.text.startswith(mine.text):
        return "not the beginning of the plain text"
    scores = zip(mine.logprobs, plain.logprobs, strict=False)
    if any(abs(a - b) > TOLERANCE for a, b in scores):
        return "logprobs differ"
    if is_cancelled:
        return None
    for name in ("text", "finish_reason", "stop_reason"):
        if getattr(mine, name) != getattr(plain, name):
            return f"{name} differs"
    if len(mine.logprobs) != len(plain.logprobs):
        return "numbers of logprobs differ"
    return None
