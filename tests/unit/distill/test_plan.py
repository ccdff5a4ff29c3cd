# SPDX-License-Identifier: Apache-2.0
"""Drawing a shard's conversations from the sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vllm_medusa.distill.conversation import Conversation
from vllm_medusa.distill.plan import MOST_UNUSABLE, Planner
from vllm_medusa.distill.sources import (
    ListedSource,
    Source,
    Sources,
    TemplateSource,
    WrittenSource,
)
from vllm_medusa.distill.tally import Tally
from vllm_medusa.prompts import normalised


def listed(label: str, count: int, weight: float = 1.0) -> ListedSource:
    conversations = tuple(
        Conversation(f"{label}/{n}", label, label, (f"{label} {n}",))
        for n in range(count)
    )
    return ListedSource(label, weight, conversations)


def sources(*all_: Source) -> Sources:
    prompts = frozenset(
        normalised(c.user_turns[0])
        for source in all_
        if isinstance(source, ListedSource)
        for c in source.conversations
    )
    return Sources(all_, prompts, "", 0)


def planner(
    found: Sources, written: Sequence[str | None] = (), longest: int = 10_000
) -> Planner:
    texts = iter(written)
    return Planner(
        found,
        answers_per_prompt=1,
        fits=lambda c: len(c.user_turns[0]) <= longest,
        write=lambda asked: [next(texts, None) for _ in asked],
    )


def by_source(conversations: Sequence[Conversation]) -> dict[str, int]:
    return dict(Counter(c.source for c in conversations))


def test_weights_are_shares() -> None:
    found = sources(listed("a", 100, 3.0), listed("b", 100, 1.0))
    plan = planner(found).plan(40, Tally(), set(found.listed))
    assert by_source(plan.conversations) == {"a": 30, "b": 10}
    assert plan.positions == {"a": 30, "b": 10}
    # spread out, not one after the other
    assert by_source(plan.conversations[:8]) == {"a": 6, "b": 2}


def test_a_source_that_brought_more_answers_than_its_share_waits() -> None:
    """b's prompts bring three answers each: a third as many are drawn."""
    found = sources(listed("a", 100), listed("b", 100))
    tally = Tally({"a": 3, "b": 3}, set(), Counter(a=3, b=3), Counter(a=3, b=9), 12)
    plan = planner(found).plan(26, tally, set(found.listed))
    drawn = by_source(plan.conversations)
    answers = {"a": 3 + drawn["a"], "b": 9 + 3 * drawn["b"]}
    assert abs(answers["a"] - answers["b"]) <= 3


def test_a_source_that_ends_leaves_its_share_to_the_others() -> None:
    found = sources(listed("a", 3), listed("b", 100))
    plan = planner(found).plan(20, Tally(), set(found.listed))
    assert by_source(plan.conversations) == {"a": 3, "b": 17}
    assert plan.ended == {"a"}
    rest = planner(found).plan(200, Tally(plan.positions, plan.ended), set())
    assert by_source(rest.conversations) == {"b": 83}
    assert rest.ended == {"a", "b"}


def test_templates_never_repeat_a_prompt() -> None:
    templates = TemplateSource("t", 1.0, "t", seed=0)
    first = planner(sources(templates)).plan(300, Tally(), set())
    prompts = {normalised(c.user_turns[0]) for c in first.conversations}
    assert len(prompts) == 300 == len(first.fresh)
    # As if another source had asked all that: none of it comes again.
    again = planner(sources(templates)).plan(300, Tally(), prompts)
    assert not prompts & {normalised(c.user_turns[0]) for c in again.conversations}
    assert again.left_out["duplicate prompts"] >= 300


def test_prompts_that_do_not_fit_are_left_out() -> None:
    found = sources(listed("a", 20))
    plan = planner(found, longest=3).plan(20, Tally(), set(found.listed))
    assert len(plan.conversations) == 10  # "a 0" to "a 9"
    assert plan.left_out == {"prompts too long for the context": 10}


def test_the_model_is_asked_anew_for_unusable_and_known_prompts() -> None:
    found = sources(WrittenSource("self", 1.0, "self"), listed("a", 9))
    written = ["one", None, "A  1", "two", "ONE", "three"]
    plan = planner(found, written).plan(6, Tally(), set(found.listed))
    texts = [c.user_turns[0] for c in plan.conversations if c.source == "self"]
    assert texts == ["one", "two", "three"]
    assert plan.left_out == {"unusable prompts": 1, "duplicate prompts": 2}
    names = [c.name for c in plan.conversations if c.source == "self"]
    assert len(set(names)) == 3
    assert plan.positions["self"] == 6


def test_a_model_that_writes_nothing_usable_is_given_up() -> None:
    found = sources(WrittenSource("self", 1.0, "self"), listed("a", 9))
    plan = planner(found).plan(4, Tally(), set(found.listed))
    assert by_source(plan.conversations) == {"a": 2}
    assert plan.ended == {"self"}
    assert plan.left_out["unusable prompts"] >= MOST_UNUSABLE
