# SPDX-License-Identifier: Apache-2.0
"""Conversations of a shard: the model answers, and goes on as the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_medusa.distill.conversation import Conversation
from vllm_medusa.distill.options import DistillOptions
from vllm_medusa.distill.requests import Engine, Request, seed_of
from vllm_medusa.distill.user_turns import UserWriter
from vllm_medusa.prompts import conversation_ids

Record = dict[str, Any]
"""A line of a shard: the keys of `vllm_medusa.train.answers.Answer`, and "id", "task",
"turn", "sample", "top_p", "top_k"."""


@dataclass
class _Thread:
    """One sample of a conversation, as far as it has come."""

    conversation: Conversation
    sample: int
    temperature: float
    messages: list[dict[str, str]]
    records: list[Record] = field(default_factory=list)
    is_over: bool = False

    @property
    def user_texts(self) -> list[str]:
        return [m["content"] for m in self.messages if m["role"] == "user"]


class Talk:
    """Holds conversations with a model, all requests of a turn at once.

    Args:
        engine: answers requests.
        tokenizer: of the model, with a chat template.
        end_token_ids: that end a turn.
        options: of the run.

    Raises:
        ConfigError: the model is to write as the user, and its chat template does not
            show where a user's words end.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        end_token_ids: Sequence[int],
        options: DistillOptions,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._ends = tuple(end_token_ids)
        self._options = options
        self._room = options.max_model_len - options.max_answer_tokens
        self._writer: UserWriter | None = None
        if options.has_written_turns:
            self._writer = UserWriter(tokenizer, end_token_ids, options.max_user_tokens)

    def fits(self, conversation: Conversation) -> bool:
        """Whether the template takes a conversation and its first answer has room."""
        from jinja2 import TemplateError

        try:
            ids = conversation_ids(self._tokenizer, _opening(conversation))
        except TemplateError:  # such as one that knows no system message
            return False
        return len(ids) <= self._room

    def write(self, conversations: Sequence[Conversation]) -> list[str | None]:
        """Let the model write a first prompt for each; None where it is unusable."""
        assert self._writer is not None
        header = self._writer.header(())
        seed = self._options.seed
        requests = [
            self._writer.request(header, seed_of(seed, c.name, "prompt"))
            for c in conversations
        ]
        outputs = self._engine.complete(requests)
        return [self._writer.read(header, ids) for ids in outputs]

    def hold(
        self, conversations: Sequence[Conversation]
    ) -> tuple[list[list[Record]], Counter[str]]:
        """Answer conversations to their end.

        Returns:
            For each its records, by sample and then by turn; and how often an answer
            or a turn was left out, by the reason.
        """
        options = self._options
        left_out: Counter[str] = Counter()
        threads = [
            _Thread(
                conversation,
                sample,
                options.temperature(conversation.position, sample),
                _opening(conversation),
            )
            for conversation in conversations
            for sample in range(options.samples)
        ]
        for turn in range(options.turns):
            if turn:
                self._next_user_turns(threads, turn, left_out)
            self._answer(threads, turn, left_out)
        records: dict[str, list[Record]] = {c.name: [] for c in conversations}
        for thread in threads:
            records[thread.conversation.name] += thread.records
        return [records[c.name] for c in conversations], left_out

    def _answer(
        self, threads: Sequence[_Thread], turn: int, left_out: Counter[str]
    ) -> None:
        asked: list[tuple[_Thread, list[int]]] = []
        for thread in threads:
            if thread.is_over:
                continue
            ids = conversation_ids(self._tokenizer, thread.messages)
            if len(ids) > self._room:
                left_out["turns too long for the context"] += 1
                thread.is_over = True
                continue
            asked.append((thread, ids))
        outputs = self._engine.complete(
            [self._request(thread, ids, turn) for thread, ids in asked]
        )
        given: set[tuple[str, tuple[int, ...], tuple[int, ...]]] = set()
        for (thread, ids), output in zip(asked, outputs, strict=True):
            key = (thread.conversation.name, tuple(ids), tuple(output))
            is_empty = all(token in self._ends for token in output)
            if is_empty or key in given:
                reason = "empty answers" if is_empty else "equal answers"
                left_out[reason] += 1
                thread.is_over = True
                continue
            given.add(key)
            self._take(thread, ids, output, turn)

    def _request(self, thread: _Thread, ids: list[int], turn: int) -> Request:
        options = self._options
        name = thread.conversation.name
        return Request(
            ids,
            seed_of(options.seed, name, thread.sample, turn, "answer"),
            options.max_answer_tokens,
            self._ends,
            thread.temperature,
            options.top_p,
            options.top_k,
        )

    def _take(
        self, thread: _Thread, ids: list[int], output: list[int], turn: int
    ) -> None:
        is_whole = output[-1] in self._ends
        thread.records.append(
            {
                "prompt": thread.messages[-1]["content"],
                "prompt_token_ids": ids,
                "answer_token_ids": output,
                "source": thread.conversation.source,
                "temperature": thread.temperature,
                "finish": "stop" if is_whole else "length",
                "id": thread.conversation.name,
                "task": thread.conversation.task,
                "turn": turn,
                "sample": thread.sample,
                "top_p": self._options.top_p,
                "top_k": self._options.top_k,
            }
        )
        text = self._tokenizer.decode(output, skip_special_tokens=True)
        thread.messages.append({"role": "assistant", "content": text})
        # Nobody would go on with an answer that was cut.
        thread.is_over = not is_whole

    def _next_user_turns(
        self, threads: Sequence[_Thread], turn: int, left_out: Counter[str]
    ) -> None:
        """The data's own next turn where it has one, else one that the model writes."""
        waiting = []
        for thread in threads:
            given = thread.conversation.user_turns
            if thread.is_over:
                continue
            if turn < len(given):
                thread.messages.append({"role": "user", "content": given[turn]})
            elif thread.conversation.is_open:
                waiting.append(thread)
            else:
                thread.is_over = True
        if not waiting:
            return
        assert self._writer is not None
        asked = [(t, self._writer.header(t.messages)) for t in waiting]
        room = self._options.max_model_len - self._options.max_user_tokens
        for thread, header in asked:
            if len(header.token_ids) > room:
                left_out["turns too long for the context"] += 1
                thread.is_over = True
        asked = [(thread, header) for thread, header in asked if not thread.is_over]
        requests = [
            self._writer.request(
                header,
                seed_of(
                    self._options.seed, t.conversation.name, t.sample, turn, "user"
                ),
            )
            for t, header in asked
        ]
        outputs = self._engine.complete(requests)
        for (thread, header), output in zip(asked, outputs, strict=True):
            text = self._writer.read(header, output, thread.user_texts)
            if text is None:
                left_out["unusable turns of the user"] += 1
                thread.is_over = True
            else:
                thread.messages.append({"role": "user", "content": text})


def _opening(conversation: Conversation) -> list[dict[str, str]]:
    """The messages up to the user's first turn."""
    messages = []
    if conversation.system is not None:
        messages.append({"role": "system", "content": conversation.system})
    messages.append({"role": "user", "content": conversation.user_turns[0]})
    return messages
