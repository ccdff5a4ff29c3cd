# SPDX-License-Identifier: Apache-2.0
"""Config and tokenizer of a base model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_medusa.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def load_config(model: str) -> PretrainedConfig:
    """The model's config.

    Raises:
        CheckpointError: it can't be loaded.
    """
    from transformers import AutoConfig

    return _load(AutoConfig, model)


def load_tokenizer(model: str) -> Any:
    """The model's tokenizer.

    Raises:
        CheckpointError: it can't be loaded.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, model)


def _load(kind: Any, model: str) -> Any:
    try:
        return kind.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"base model {model!r} cannot be loaded: {error}"
        ) from error
