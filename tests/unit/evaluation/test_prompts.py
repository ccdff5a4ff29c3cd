# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from vllm_medusa.errors import ConfigError
from vllm_medusa.evaluation.prompts import default_prompts, read_evaluation_prompts
from vllm_medusa.evaluation.questions import DISTRIBUTION, reference_answers
from vllm_medusa.prompts import conversation_ids


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_all_forms_of_a_prompt(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"prompt": "Translate: Haus", "reference": "house", "category": "de-en"}',
        "",
        '{"turns": ["first", "second"], "question_id": 5}',
        '{"messages": [{"role": "system", "content": "Be brief."},'
        ' {"role": "user", "content": "Hi", "name": "x"}]}',
    )
    first, second, third = read_evaluation_prompts(path)
    assert first.name == "de-en-1"
    assert first.messages == ({"role": "user", "content": "Translate: Haus"},)
    assert first.reference == "house"
    assert second.name == "prompt-3"
    assert second.messages == ({"role": "user", "content": "first"},)
    assert second.reference is None
    assert third.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ('"text"', "line 2: a prompt line is an object"),
        ('{"prompt": ""}', "line 2: a prompt line is an object"),
        ('{"prompt": 3}', "line 2: a prompt line is an object"),
        ('{"turns": []}', "line 2: a prompt line is an object"),
        ('{"messages": []}', "line 2: a prompt line is an object"),
        ('{"messages": [{"role": "user"}]}', "line 2: a prompt line is an object"),
        ('{"prompt": "a", "reference": 3}', 'line 2: "reference" must be a text'),
        ('{"prompt": "a", "category": " "}', 'line 2: "category" must be a text'),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, '{"prompt": "fine"}', line)
    with pytest.raises(ConfigError, match=message):
        read_evaluation_prompts(path)


def test_missing_empty_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't read the prompts"):
        read_evaluation_prompts(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="holds no prompt"):
        read_evaluation_prompts(write(tmp_path, "", " "))
    path = tmp_path / "binary.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="can't read the prompts"):
        read_evaluation_prompts(path)


def test_the_default_is_mt_bench_with_its_references() -> None:
    prompts = default_prompts(1)
    assert len({prompt.name.rsplit("-", 1)[0] for prompt in prompts}) == 8
    with_reference = {p.name.rsplit("-", 1)[0] for p in prompts if p.reference}
    assert with_reference == {"reasoning", "math", "coding"}
    assert len(reference_answers()) == 30
    assert len(default_prompts(2)) == 16


def test_without_mt_bench_prompts_must_be_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def files(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", files)
    with pytest.raises(ConfigError, match=f"{DISTRIBUTION}, or give --prompts"):
        default_prompts(1)


def test_a_conversation_needs_a_chat_template() -> None:
    tokenizer = SimpleNamespace(chat_template=None, encode=lambda text: [len(text)])
    message = {"role": "user", "content": "four"}
    assert conversation_ids(tokenizer, [message]) == [4]
    with pytest.raises(ConfigError, match="a conversation of 2 messages"):
        conversation_ids(tokenizer, [message, message])


def test_a_conversation_goes_through_the_template_whole() -> None:
    seen = []

    def apply(messages: list[dict[str, str]], **options: bool) -> list[int]:
        seen.append((messages, options))
        return [1, 2]

    tokenizer = SimpleNamespace(chat_template="x", apply_chat_template=apply)
    messages = [{"role": r, "content": r} for r in ("system", "user")]
    assert conversation_ids(tokenizer, messages) == [1, 2]
    options = {"add_generation_prompt": True, "return_dict": False}
    assert seen == [(messages, options)]
