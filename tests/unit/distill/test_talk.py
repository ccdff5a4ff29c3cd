# SPDX-License-Identifier: Apache-2.0
"""Conversations of several turns and samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.unit.distill.toy import END, ToyEngine, ToyTokenizer, options
from vllm_medusa.distill.conversation import Conversation
from vllm_medusa.distill.requests import Request
from vllm_medusa.distill.source_option import SourceOption
from vllm_medusa.distill.talk import Talk

OPEN = Conversation("p/0", "p", "task", ("tell me",))
DATA = Conversation("s/7", "s", "chat", ("first", "second"), "Be brief.", False)


class Scripted:
    """Gives texts in the order in which they are asked for."""

    def __init__(self, *texts: str) -> None:
        self.requests: list[Request] = []
        self._texts = iter(texts)

    def complete(self, requests: Sequence[Request]) -> list[list[int]]:
        self.requests += requests
        return [[ord(c) for c in next(self._texts)] for _ in requests]

    def close(self) -> None:
        pass


def talk(engine: Any, output: Path, **changes: Any) -> Talk:
    values = {"num_prompts": 9, "temperatures": (0.7,), **changes}
    return Talk(engine, ToyTokenizer(), [END], options(output, **values))


def text(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def test_the_model_plays_both_sides(tmp_path: Path) -> None:
    engine = Scripted("yes\x02", "and why?\x02", "so it is\x02")
    ((first, second),), left_out = talk(engine, tmp_path, turns=2).hold([OPEN])
    context = "\x01user\ntell me\x02\n\x01assistant\n"
    assert text(first["prompt_token_ids"]) == context
    later = context + "yes\x02\n\x01user\nand why?\x02\n\x01assistant\n"
    assert text(second["prompt_token_ids"]) == later
    assert second["prompt"] == "and why?"
    assert text(second["answer_token_ids"]) == "so it is\x02"
    assert (first["turn"], second["turn"]) == (0, 1)
    assert {r["finish"] for r in (first, second)} == {"stop"}
    as_user = engine.requests[1]
    assert text(as_user.token_ids) == context + "yes\x02\n\x01user\n"
    assert END in as_user.stop_token_ids
    assert not left_out


def test_data_with_turns_of_their_own_use_those(tmp_path: Path) -> None:
    engine = Scripted("a\x02", "b\x02")
    sources = (SourceOption("sharegpt", "s.json"),)
    ((first, second),), left_out = talk(
        engine, tmp_path, turns=5, sources=sources
    ).hold([DATA])
    frame = "\x01system\nBe brief.\x02\n\x01user\nfirst\x02\n\x01assistant\n"
    assert text(first["prompt_token_ids"]) == frame
    assert text(second["prompt_token_ids"]).startswith(frame + "a\x02\n\x01user\nsec")
    assert second["id"] == "s/7"
    assert second["task"] == "chat"
    assert len(engine.requests) == 2
    assert not left_out


def test_a_conversation_ends_at_an_unusable_turn_or_a_cut_answer(
    tmp_path: Path,
) -> None:
    for reply in ("tell  ME\x02", "?!\x02", "broken \ufffd\x02", "no end", "\x01x\x02"):
        engine = Scripted("yes\x02", reply)
        ((only,),), left_out = talk(engine, tmp_path, turns=3).hold([OPEN])
        assert only["turn"] == 0
        assert left_out == {"unusable turns of the user": 1}
    ((cut,),), left_out = talk(Scripted("yes"), tmp_path, turns=3).hold([OPEN])
    assert cut["finish"] == "length"
    assert not left_out


def test_equal_and_empty_answers_are_left_out(tmp_path: Path) -> None:
    engine = Scripted("same\x02", "other\x02", "same\x02", "\x02")
    (records,), left_out = talk(engine, tmp_path, samples=4).hold([OPEN])
    assert [r["sample"] for r in records] == [0, 1]
    assert left_out == {"equal answers": 1, "empty answers": 1}
    seeds = [request.seed for request in engine.requests]
    assert len(set(seeds)) == 4


def test_turns_too_long_for_the_context(tmp_path: Path) -> None:
    long = "why " * 300
    engine = Scripted("yes\x02", "no\x02", long + "\x02")
    found = talk(engine, tmp_path, turns=2)
    assert found.fits(OPEN)
    assert not found.fits(Conversation("p/1", "p", "task", (long,)))
    chat = Conversation("s/1", "s", "chat", ("first", long), is_open=False)
    records, left_out = found.hold([OPEN, chat])
    assert [len(r) for r in records] == [1, 1]
    assert left_out["turns too long for the context"] == 1


def test_answers_do_not_depend_on_what_else_is_asked(tmp_path: Path) -> None:
    chats = [Conversation(f"p/{n}", "p", "t", (f"tell me {n}",)) for n in range(9)]
    changes = {"turns": 3, "samples": 2}
    together, _ = talk(ToyEngine(), tmp_path, **changes).hold(chats)
    alone = [
        talk(ToyEngine(), tmp_path, **changes).hold([chat])[0][0]
        for chat in reversed(chats)
    ]
    assert together == alone[::-1]
    assert any(record["turn"] == 2 for records in together for record in records)
