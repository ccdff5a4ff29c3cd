# SPDX-License-Identifier: Apache-2.0
"""Prompts to measure with: from a file, and as token ids of a user's turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    except (OSError, ValueError) as error:  # a NUL byte, or no UTF-8
        raise ConfigError(f"can't read the prompts from {path}: {error}") from None
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise ConfigError(f"{path} holds no prompt; write one a line")
    return prompts


def user_turn_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return the ids of `prompt` as a user's turn, or as it is without a template."""
    return conversation_ids(tokenizer, [{"role": "user", "content": prompt}])


def conversation_ids(
    tokenizer: Any, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """Return the ids of `messages` up to where the answer begins.

    Without a template a single message is taken as it is.

    Raises:
        ConfigError: the model has no chat template and there are several messages.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        if len(messages) > 1:
            raise ConfigError(
                f"the model has no chat template for a conversation of {len(messages)} "
                "messages: give single prompts, or another model"
            )
        return list(tokenizer.encode(messages[0]["content"]))
    return list(
        tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=False
        )
    )
