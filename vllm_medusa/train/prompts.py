# SPDX-License-Identifier: Apache-2.0
"""Prompts: from files, from templates, and how the chat template frames them."""

from __future__ import annotations

import json
import random
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from vllm_medusa.errors import ConfigError

_MARK = "\u241fprompt\u241f"
"""Stands for the user's text when the chat template's header is looked for."""


def read_prompts(path: str | Path) -> list[str]:
    """Read prompts: a text file with one per line, or JSON lines.

    A JSON line holds the text under "prompt", or a list under "turns" of which the
    first is taken (the form of MT-bench's questions). Blank lines are skipped.

    Raises:
        ConfigError: the file is missing or empty, or a line is malformed; names
            the line's number.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"prompts file {path} does not exist")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts file {path} cannot be read: {error}") from None
    is_json = file.suffix in (".jsonl", ".json")
    prompts = [
        _prompt_of(line, f"{path}, line {number}") if is_json else line.strip()
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise ConfigError(f"prompts file {path} holds no prompt")
    return prompts


def _prompt_of(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    text = None
    if isinstance(record, dict):
        text = record.get("prompt")
        turns = record.get("turns")
        if text is None and isinstance(turns, list) and turns:
            text = turns[0]
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(
            f'{where}: a prompt line is an object with a text "prompt" or a '
            'non-empty list "turns"'
        )
    return text


@cache
def _word_lists() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Templates and topics that come with the package."""
    source = files("vllm_medusa.train") / "prompt_templates.json"
    data = json.loads(source.read_text(encoding="utf-8"))
    return tuple(data["templates"]), tuple(data["topics"])


def template_prompt(rng: random.Random) -> str:
    """Return a random template filled with random topics and small numbers."""
    templates, topics = _word_lists()
    template = rng.choice(templates)
    chosen = iter(rng.sample(topics, template.count("{topic}")))
    parts = template.split("{topic}")
    text = parts[0] + "".join(next(chosen) + part for part in parts[1:])
    while "{number}" in text:
        text = text.replace("{number}", str(rng.randint(2, 60)), 1)
    return text


def prompt_token_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of `prompt` as one user turn, up to where the answer begins.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """
    check_chat_template(tokenizer)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    return [int(token) for token in ids]


def user_turn_frame(tokenizer: Any) -> tuple[str, str]:
    """Text before and right after the user's words in the chat template.

    Given the first part, an instruction-tuned model writes a user turn of its own
    and ends it with the second (Magpie, arXiv 2406.08464).

    Raises:
        ConfigError: the tokenizer has no chat template, or one that hides the text.
    """
    check_chat_template(tokenizer)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": _MARK}],
        add_generation_prompt=True,
        tokenize=False,
    )
    head, mark, tail = text.partition(_MARK)
    end = tail.strip().split("\n")[0]
    if not mark or not end:
        raise ConfigError(
            "the chat template does not show where a user's text begins and ends, "
            "so the model cannot write prompts: give --prompts and "
            "--written-prompts 0"
        )
    return head, end


def check_chat_template(tokenizer: Any) -> None:
    """Raise ConfigError unless the tokenizer has a chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"the base model {getattr(tokenizer, 'name_or_path', '')!r} has no chat "
            "template: choose an instruction-tuned model, or add "
            "chat_template.jinja to its folder"
        )
