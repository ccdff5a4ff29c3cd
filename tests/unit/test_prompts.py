# SPDX-License-Identifier: Apache-2.0
import json
import random
from pathlib import Path

import pytest

from vllm_medusa.distill.templates import template_prompt
from vllm_medusa.errors import ConfigError
from vllm_medusa.prompts import (
    read_conversations,
    read_prompts,
    user_header,
    user_turn_ids,
)


class ChatTokenizer:
    """Frames as ChatML does; token ids are character codes."""

    chat_template = "chatml"
    name_or_path = "toy"

    def apply_chat_template(self, messages, *, tokenize=True, **_):
        frames = (f"<s>{m['role']}\n{m['content']}</s>\n" for m in messages)
        text = "".join(frames) + "<s>assistant\n"
        return [ord(c) for c in text] if tokenize else text

    def encode(self, text, *, add_special_tokens=True):
        return [0] * add_special_tokens + [ord(c) for c in text]


class PlainTokenizer:
    chat_template = None
    name_or_path = "no-chat"


def test_text_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("first\n\n  second \n# a comment\n")
    assert read_prompts(path) == ("first", "second")


def test_json_lines_with_prompt_or_turns(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "one\ntwo"}, {"turns": ["three", "four"]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_prompts(path) == ("one\ntwo", "three")


def test_all_turns(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n{"turns": ["two", "three"]}')
    assert read_conversations(path) == (("one",), ("two", "three"))


def test_halves_of_characters_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "cut \\ud83d"}\n{"turns": ["\\ud83d\\ude00"]}')
    assert read_prompts(path) == ("cut \ufffd", "\U0001f600")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        '{"text": "x"}',
        '{"prompt": " "}',
        '{"turns": []}',
        '{"turns": ["x", 1]}',
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_prompts(path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't read the prompts from .*No such"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConfigError, match="no prompt"):
        read_prompts(tmp_path / "empty.txt")


def test_templates_are_filled_and_varied() -> None:
    rng = random.Random(0)
    prompts = {template_prompt(rng) for _ in range(300)}
    assert len(prompts) > 250
    assert not any("{" in prompt for prompt in prompts)


def test_frame_of_a_user_turn() -> None:
    header = user_header(ChatTokenizer())
    assert "".join(map(chr, header.token_ids)) == "<s>user\n"
    assert header.end == "</s>"
    ids = user_turn_ids(ChatTokenizer(), "hi")
    assert "".join(map(chr, ids)) == "<s>user\nhi</s>\n<s>assistant\n"


def test_frame_of_a_later_turn() -> None:
    messages = [{"role": role, "content": role} for role in ("user", "assistant")]
    header = user_header(ChatTokenizer(), messages)
    expected = "<s>user\nuser</s>\n<s>assistant\nassistant</s>\n<s>user\n"
    assert "".join(map(chr, header.token_ids)) == expected


def test_the_model_can_not_write_without_a_chat_template() -> None:
    with pytest.raises(ConfigError, match=r"'no-chat' has no chat template"):
        user_header(PlainTokenizer())


def test_a_template_that_hides_the_text_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden = lambda self, messages, **_: "hidden"  # noqa: E731
    monkeypatch.setattr(ChatTokenizer, "apply_chat_template", hidden)
    with pytest.raises(ConfigError, match="does not show where a user's text begins"):
        user_header(ChatTokenizer())
