# SPDX-License-Identifier: Apache-2.0
"""Requests through the official client, and their answers in one form.

The same request is sent to a server with Medusa and to a plain one, which leaves
vllm_xargs that it does not know alone.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

import openai
import pytest

from tests.serving.support.server import NAME

Endpoint = Literal["chat", "completions", "responses"]
TOLERANCE = 1e-4
"""Of logprobs: rounding differs with the number of rows in a matrix product."""


@dataclass(frozen=True)
class Ask:
    """A request: its endpoint and the fields that go into the body."""

    endpoint: Endpoint
    fields: dict[str, Any]

    @staticmethod
    def chat(content: str, **fields: Any) -> Ask:
        """A chat of one message; at temperature 0 unless `fields` say otherwise."""
        messages = [{"role": "user", "content": content}]
        return Ask("chat", {"messages": messages, **_DEFAULTS, **fields})

    @staticmethod
    def completion(prompt: str | list[int], **fields: Any) -> Ask:
        return Ask("completions", {"prompt": prompt, **_DEFAULTS, **fields})

    @staticmethod
    def response(content: str, **fields: Any) -> Ask:
        fields = {**_DEFAULTS, **fields}
        fields["max_output_tokens"] = fields.pop("max_tokens")
        return Ask("responses", {"input": content, "store": False, **fields})


_DEFAULTS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}


Scores = tuple[str, float, list[float]]
"""The token of a position, its logprob, and those of the best tokens."""


@dataclass
class Choice:
    """One completion of a request.

    Attributes:
        text: what was generated.
        token_ids: the same; the endpoint "responses" gives none.
        finish_reason: "length", "stop", …; the status for "responses".
        stop_reason: the stop string that was found.
        logprobs: of each position, the token's and those of the best tokens. None for
            a streamed response: vLLM leaves out those of tokens without a text of
            their own, and how many these are depends on the parts.
        parts: how many parts of a stream held text.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[Scores] | None = field(default_factory=list)
    parts: int = 0


@dataclass
class Answer:
    """What a server answered.

    Attributes:
        choices: in the order of their indices.
        prompt_tokens, completion_tokens: the usage.
        cached_tokens: of the prompt, found in the prefix cache.
        metrics: vLLM's own of this request, if the server was told to give them.
    """

    choices: list[Choice]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    metrics: Any = None


def assert_same(mine: Answer, theirs: Answer) -> None:
    """Compare all but the parts of a stream and the metrics."""
    assert mine.prompt_tokens == theirs.prompt_tokens
    assert mine.completion_tokens == theirs.completion_tokens
    for my_choice, their_choice in zip(mine.choices, theirs.choices, strict=True):
        assert my_choice.token_ids == their_choice.token_ids
        assert my_choice.text == their_choice.text
        assert my_choice.finish_reason == their_choice.finish_reason
        assert my_choice.stop_reason == their_choice.stop_reason
        if my_choice.logprobs is None or their_choice.logprobs is None:
            continue
        pairs = zip(my_choice.logprobs, their_choice.logprobs, strict=True)
        for (my_token, mine_of, my_best), (their_token, theirs_of, their_best) in pairs:
            assert my_token == their_token
            assert mine_of == pytest.approx(theirs_of, abs=TOLERANCE)
            assert my_best == pytest.approx(their_best, abs=TOLERANCE)


async def answer(
    client: openai.AsyncOpenAI, ask: Ask, *, stream: bool = False
) -> Answer:
    """Send a request and wait for the whole of its answer."""
    api: Any = {
        "chat": client.chat.completions,
        "completions": client.completions,
        "responses": client.responses,
    }[ask.endpoint]
    given = {"model": NAME, **ask.fields}
    if ask.endpoint != "responses":
        given["return_token_ids"] = True
    known = inspect.signature(api.create).parameters
    arguments = {name: value for name, value in given.items() if name in known}
    # vLLM's own fields, for which the client has no names
    arguments["extra_body"] = {n: v for n, v in given.items() if n not in known}
    if ask.endpoint == "responses":
        if stream:
            return await _streamed_response(client, arguments)
        return _of_response(await api.create(**arguments))
    if not stream:
        whole = await api.create(**arguments)
        return _of_choices([whole], whole)
    parts = []
    options = {"include_usage": True}
    async for part in await api.create(
        **arguments, stream=True, stream_options=options
    ):
        parts.append(part)
    # The usage comes last, without a choice, and nowhere else.
    assert not parts[-1].choices
    assert [part for part in parts[:-1] if part.usage] == []
    return _of_choices(parts[:-1], parts[-1])


def _of_choices(parts: list[Any], last: Any) -> Answer:
    """Put the parts of chat or completions together; a whole answer is one part."""
    choices: dict[int, Choice] = {}
    for part in parts:
        for own in part.choices:
            choice = choices.setdefault(own.index, Choice())
            holder = getattr(own, "delta", None) or getattr(own, "message", None)
            text = own.text if holder is None else holder.content
            choice.text += text or ""
            choice.parts += bool(text)
            choice.token_ids += getattr(own, "token_ids", None) or []
            assert choice.logprobs is not None
            choice.logprobs += _logprobs(own.logprobs)
            if own.finish_reason is not None:
                assert choice.finish_reason is None, "a second end"
                choice.finish_reason = own.finish_reason
                choice.stop_reason = own.stop_reason
    details = last.usage.prompt_tokens_details
    return Answer(
        [choices[index] for index in sorted(choices)],
        last.usage.prompt_tokens,
        last.usage.completion_tokens,
        details.cached_tokens if details else None,
        getattr(last, "metrics", None),
    )


def _logprobs(of_part: Any) -> list[Scores]:
    if of_part is None:
        return []
    content = getattr(of_part, "content", None)
    if content is not None:  # chat
        return [
            (p.token, p.logprob, [best.logprob for best in p.top_logprobs])
            for p in content
        ]
    if not hasattr(of_part, "token_logprobs"):
        return []
    best = of_part.top_logprobs or [None] * len(of_part.tokens)
    return [
        # The first token of an echoed prompt has no logprob.
        (token, value or 0.0, sorted((scores or {}).values(), reverse=True))
        for token, value, scores in zip(
            of_part.tokens, of_part.token_logprobs, best, strict=True
        )
    ]


def _of_response(response: Any) -> Answer:
    (message,) = response.output
    (content,) = message.content
    logprobs = [
        (p.token, p.logprob, [best.logprob for best in p.top_logprobs])
        for p in content.logprobs or []
    ]
    choice = Choice(
        text=content.text, finish_reason=response.status, logprobs=logprobs, parts=1
    )
    usage = response.usage
    return Answer([choice], usage.input_tokens, usage.output_tokens)


async def _streamed_response(
    client: openai.AsyncOpenAI, arguments: dict[str, Any]
) -> Answer:
    deltas: list[str] = []
    final = None
    async for event in await client.responses.create(**arguments, stream=True):
        if event.type == "response.output_text.delta":
            deltas.append(event.delta)
        elif event.type in ("response.completed", "response.incomplete"):
            final = _of_response(event.response)
    assert final is not None, "the stream has no end"
    (choice,) = final.choices
    assert choice.text == "".join(deltas)
    choice.parts = len(deltas)
    choice.logprobs = None
    return final
