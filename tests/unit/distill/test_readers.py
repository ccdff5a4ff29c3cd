# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_medusa.distill.readers import prompt_conversations, sharegpt_conversations
from vllm_medusa.errors import ConfigError

CHAT = [
    {"from": "system", "value": "Be brief."},
    {"from": "gpt", "value": "Hello."},
    {"from": "human", "value": "first"},
    {"from": "gpt", "value": "answer"},
    {"from": "human", "value": "second"},
]


def write(path: Path, records: list[Any]) -> Path:
    lines = map(json.dumps, records)
    path.write_text(
        "\n".join(lines) if path.suffix == ".jsonl" else json.dumps(records)
    )
    return path


def test_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\n# no prompt\ntwo\n")
    first, second = prompt_conversations(path, "label", "task")
    assert (first.user_turns, first.is_open) == (("one",), True)
    assert (second.name, second.source, second.task) == ("label/1", "label", "task")


@pytest.mark.parametrize("name", ["s.json", "s.jsonl"])
def test_both_forms_of_a_conversation(tmp_path: Path, name: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    records = [
        {"id": "a", "conversations": CHAT},
        {"conversations": [{"from": "gpt", "value": "nobody asked"}]},
        {"messages": messages},
    ]
    first, second = sharegpt_conversations(write(tmp_path / name, records), "s", "t")
    assert (first.user_turns, first.system) == (("first", "second"), "Be brief.")
    assert not first.is_open
    assert (second.name, second.user_turns, second.system) == ("s/2", ("hi",), None)


def test_a_conversation_ends_where_a_text_is_missing(tmp_path: Path) -> None:
    chat = [*CHAT[:3], {"from": "human", "value": None}, CHAT[4]]
    path = write(tmp_path / "s.json", [{"conversations": chat}])
    (found,) = sharegpt_conversations(path, "s", "t")
    assert found.user_turns == ("first",)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("text", "conversation 1: a conversation is an object with a list"),
        ({"turns": []}, "conversation 1: a conversation is an object"),
        ({"messages": ["hi"]}, "conversation 1: .* not 'hi'"),
        ({"messages": [{"content": "hi"}]}, "conversation 1: a conversation is"),
    ],
)
def test_a_malformed_record_is_named(tmp_path: Path, record: Any, message: str) -> None:
    path = write(tmp_path / "s.json", [{"conversations": CHAT}, record])
    with pytest.raises(ConfigError, match=message):
        sharegpt_conversations(path, "s", "t")


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    with pytest.raises(ConfigError, match=r"can't read .*No such file"):
        sharegpt_conversations(path, "s", "t")
    path.write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(ConfigError, match=r"JSON lines are to end in \.jsonl"):
        sharegpt_conversations(path, "s", "t")
    path.write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="instead of a list"):
        sharegpt_conversations(path, "s", "t")
    path.write_text("[]")
    with pytest.raises(ConfigError, match="no conversation with a user's text"):
        sharegpt_conversations(path, "s", "t")
