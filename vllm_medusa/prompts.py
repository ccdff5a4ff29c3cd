# SPDX-License-Identifier: Apache-2.0
"""Prompts to measure with: from a file, and as token ids of a user's turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_medusa.errors import ConfigError


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the lines of a text file, without empty ones and `#` comments.

    Raises:
        ConfigError: the file can't be read or holds no prompt.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the prompts from {path}: {error}") from None
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise ConfigError(f"{path} holds no prompt; write one a line")
    return prompts


def user_turn_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return the ids of `prompt` as a user's turn, or as it is without a template."""
    if getattr(tokenizer, "chat_template", None) is None:
        return list(tokenizer.encode(prompt))
    turn = [{"role": "user", "content": prompt}]
    return list(
        tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, return_dict=False
        )
    )
