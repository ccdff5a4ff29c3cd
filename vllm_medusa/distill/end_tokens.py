# SPDX-License-Identifier: Apache-2.0
"""Which tokens end an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_medusa.errors import ConfigError


def end_token_ids(model: str | Path, tokenizer: Any) -> list[int]:
    """Tokens that end an answer, as vLLM takes them from a model's files.

    Raises:
        ConfigError: no file says.
    """
    from transformers import AutoConfig, GenerationConfig

    found: list[Any] = [tokenizer.eos_token_id]
    for kind in (AutoConfig, GenerationConfig):
        try:
            found.append(kind.from_pretrained(model).eos_token_id)
        except (OSError, AttributeError):
            continue  # no such file, or it does not say
    ends: set[int] = set()
    for value in found:
        if value is not None:
            ends.update(value if isinstance(value, list) else [value])
    if not ends:
        raise ConfigError(
            f"neither the tokenizer nor the files of {model} say which token ends an "
            "answer: add eos_token_id to its generation_config.json"
        )
    return sorted(ends)
