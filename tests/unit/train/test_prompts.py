# SPDX-License-Identifier: Apache-2.0
import json
import random
from pathlib import Path

import pytest

from vllm_medusa.errors import ConfigError
from vllm_medusa.train.prompts import (
    prompt_token_ids,
    read_prompts,
    template_prompt,
    user_turn_frame,
)


class ChatTokenizer:
    """Frames as ChatML does; token ids are character codes."""

    chat_template = "chatml"
    name_or_path = "toy"

    def apply_chat_template(self, messages, *, tokenize, **_):
        text = f"<s>user\n{messages[0]['content']}</s>\n<s>assistant\n"
        return [ord(c) for c in text] if tokenize else text


class PlainTokenizer:
    chat_template = None
    name_or_path = "no-chat"


def test_text_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("first\n\n  second \n")
    assert read_prompts(path) == ["first", "second"]


def test_json_lines_with_prompt_or_turns(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "one\ntwo"}, {"turns": ["three", "four"]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_prompts(path) == ["one\ntwo", "three"]


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"text": "x"}', '{"prompt": " "}', '{"turns": []}']
)
def test_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_prompts(path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
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
    assert user_turn_frame(ChatTokenizer()) == ("<s>user\n", "</s>")
    ids = prompt_token_ids(ChatTokenizer(), "hi")
    assert "".join(map(chr, ids)) == "<s>user\nhi</s>\n<s>assistant\n"


def test_base_without_chat_template_is_refused() -> None:
    for call in (user_turn_frame, lambda t: prompt_token_ids(t, "hi")):
        with pytest.raises(ConfigError, match=r"'no-chat' has no chat template"):
            call(PlainTokenizer())
