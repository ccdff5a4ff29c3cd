# SPDX-License-Identifier: Apache-2.0
"""What can be refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_medusa.errors import CheckpointError, ConfigError
from vllm_medusa.train.medusa2.export import BACKBONE, HEADS
from vllm_medusa.train.medusa2.options import Medusa2Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_folders(options: Medusa2Options) -> None:
    """Refuse to read what the run is about to replace.

    Raises:
        ConfigError: the model or the heads lie in the output.
    """
    for name in (options.model, options.heads_folder):
        if name is None:
            continue
        for part in (BACKBONE, HEADS):
            if (options.output / part).resolve() == Path(name).resolve():
                raise ConfigError(
                    f"{name} lies in the output, where it would be replaced: choose "
                    "another --output"
                )


def read_tokenizer(model: str) -> tuple[Any, int]:
    """The tokenizer, and the number of tokens the model knows.

    Raises:
        CheckpointError: they can't be loaded.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"base model {model!r} cannot be loaded: {error}"
        ) from error
    return tokenizer, config.get_text_config().vocab_size


def check_generation_config(model: PreTrainedModel) -> None:
    """See that transformers will write the model's generation config as it is.

    Raises:
        CheckpointError: it contradicts itself; better known before the training.
    """
    config = model.generation_config
    try:
        if config is not None:
            config.validate(strict=True)
    except ValueError as error:
        raise CheckpointError(
            "the base model's generation_config.json can't be written again: "
            f"{error}. Correct it in a copy of the model"
        ) from error
