# SPDX-License-Identifier: Apache-2.0
"""Which conversations a shard has: the mixture of the sources by their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from vllm_medusa.distill.conversation import Conversation
from vllm_medusa.distill.sources import Source, Sources, TemplateSource, WrittenSource
from vllm_medusa.distill.tally import Tally
from vllm_medusa.prompts import normalised

WRITING_ROUNDS = 3
"""How often the model is asked anew for the prompts that were unusable."""
MOST_MISSES = 1000
"""Of templates in a row that gave a known prompt or one too long, before they count as
used up."""
MOST_UNUSABLE = 60
"""Before a model of which none was usable counts as unable to write prompts."""

DUPLICATE = "duplicate prompts"
TOO_LONG = "prompts too long for the context"


@dataclass
class Plan:
    """A shard's conversations, and where the sources stand behind it.

    Attributes:
        conversations: in the order in which they are written.
        positions: by source, where its next conversation stands.
        ended: sources that have no more.
        left_out: prompts left out, by the reason.
        fresh: normalised prompts that it has.
    """

    conversations: list[Conversation] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)
    fresh: set[str] = field(default_factory=set)


class Planner:
    """Draws conversations from sources.

    Args:
        sources: of the run.
        answers_per_prompt: what a prompt is expected to bring before one has.
        fits: whether a conversation leaves room for its first answer.
        write: lets the model write the prompts of conversations without any; None
            where one is unusable.
    """

    def __init__(
        self,
        sources: Sources,
        answers_per_prompt: int,
        fits: Callable[[Conversation], bool],
        write: Callable[[Sequence[Conversation]], list[str | None]],
    ) -> None:
        self._sources = sources
        self._answers_per_prompt = answers_per_prompt
        self._fits = fits
        self._write = write

    def plan(self, size: int, tally: Tally, seen: set[str]) -> Plan:
        """Draw `size` conversations, fewer if the sources end.

        Args:
            size: conversations.
            tally: of the shards before.
            seen: normalised prompts that may not come again: those that were read,
                and what was made for earlier shards.
        """
        plan = Plan(positions=dict(tally.positions), ended=set(tally.ended))
        expected = {s.label: float(tally.answers[s.label]) for s in self._sources.all}
        while len(plan.conversations) < size:
            open_ = [s for s in self._sources.all if s.label not in plan.ended]
            if not open_:
                break
            source = min(
                open_,
                key=lambda s: (expected[s.label] + self._mean(s, tally)) / s.weight,
            )
            conversation = self._draw(source, plan, seen)
            if conversation is None:
                plan.ended.add(source.label)
                continue
            expected[source.label] += self._mean(source, tally)
            plan.conversations.append(conversation)
        self._fill_in(plan, seen)
        return plan

    def _mean(self, source: Source, tally: Tally) -> float:
        return tally.answers_per_prompt(source.label, self._answers_per_prompt)

    def _draw(self, source: Source, plan: Plan, seen: set[str]) -> Conversation | None:
        """The next conversation of a source that fits and is new."""
        is_endless = isinstance(source, TemplateSource)
        misses = 0
        while misses < MOST_MISSES:
            position = plan.positions.get(source.label, 0)
            conversation = source.get(position)
            if conversation is None:
                return None
            plan.positions[source.label] = position + 1
            if isinstance(source, WrittenSource):
                return conversation
            prompt = normalised(conversation.user_turns[0])
            if is_endless and (prompt in seen or prompt in plan.fresh):
                plan.left_out[DUPLICATE] += 1
            elif not self._fits(conversation):
                plan.left_out[TOO_LONG] += 1
            else:
                plan.fresh.add(prompt)
                return conversation
            misses += is_endless
        return None

    def _fill_in(self, plan: Plan, seen: set[str]) -> None:
        """Let the model write the prompts that are still to be written."""
        empty = [i for i, c in enumerate(plan.conversations) if not c.user_turns]
        tries: Counter[str] = Counter()
        usable: Counter[str] = Counter()
        for turn in count():
            is_enough = all(usable[s] or n >= MOST_UNUSABLE for s, n in tries.items())
            if not empty or (turn >= WRITING_ROUNDS and is_enough):
                break
            if turn:
                self._move_on(plan, empty)
            asked = [plan.conversations[index] for index in empty]
            tries.update(conversation.source for conversation in asked)
            left = []
            for index, text in zip(empty, self._write(asked), strict=True):
                written = self._accept(plan, index, text, seen)
                if written is None:
                    left.append(index)
                    continue
                plan.conversations[index] = written
                usable[written.source] += 1
            empty = left
        plan.conversations = [c for c in plan.conversations if c.user_turns]
        plan.ended.update(label for label in tries if not usable[label])

    def _accept(
        self, plan: Plan, index: int, text: str | None, seen: set[str]
    ) -> Conversation | None:
        if text is None:
            plan.left_out["unusable prompts"] += 1
            return None
        prompt = normalised(text)
        if prompt in seen or prompt in plan.fresh:
            plan.left_out[DUPLICATE] += 1
            return None
        written = replace(plan.conversations[index], user_turns=(text,))
        if not self._fits(written):
            plan.left_out[TOO_LONG] += 1
            return None
        plan.fresh.add(prompt)
        return written

    def _move_on(self, plan: Plan, empty: Sequence[int]) -> None:
        """Take other conversations of the same sources."""
        by_label = {source.label: source for source in self._sources.all}
        for index in empty:
            label = plan.conversations[index].source
            position = plan.positions[label]
            conversation = by_label[label].get(position)
            assert conversation is not None
            plan.conversations[index] = conversation
            plan.positions[label] = position + 1
