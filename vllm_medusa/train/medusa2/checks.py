# SPDX-License-Identifier: Apache-2.0
"""What can be refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_medusa.errors import CheckpointError, ConfigError, UnsupportedError
from vllm_medusa.train.medusa2.options import Medusa2Options
from vllm_medusa.train.medusa2.output import BACKBONE, HEADS
from vllm_medusa.train.pretrained import load_config, load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


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


def read_config(model: str) -> PretrainedConfig:
    """The config of the model's text part.

    Raises:
        CheckpointError: it can't be loaded.
        UnsupportedError: the model's weights are quantised.
    """
    config = load_config(model)
    text = config.get_text_config()
    for part in (config, text):
        if getattr(part, "quantization_config", None) is not None:
            raise UnsupportedError(
                f"the weights of base model {model!r} are quantised: Medusa-2 trains "
                "and merges whole weights. Give the model that it was made from, or "
                "train heads alone (--stage medusa1)"
            )
    return text


def read_tokenizer(model: str) -> tuple[Any, int]:
    """The tokenizer, and the number of tokens the model knows.

    Raises:
        CheckpointError: they can't be loaded.
        UnsupportedError: as `read_config`.
    """
    return load_tokenizer(model), read_config(model).vocab_size


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
