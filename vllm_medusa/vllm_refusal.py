# SPDX-License-Identifier: Apache-2.0
"""What vLLM refuses when an engine starts, as an error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vllm_medusa.errors import ConfigError, MedusaError


@contextmanager
def vllm_refusal(model: str) -> Iterator[None]:
    """Turn the ValueError by which `vllm.LLM` refuses its arguments into one line.

    Args:
        model: folder or Hugging Face id of the model that the engine is made for.

    Raises:
        ConfigError: vLLM refuses the model or an option.
    """
    try:
        yield
    except MedusaError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"vLLM refuses the model {model} or an option: {_reason(error)}"
        ) from error


def _reason(error: ValueError) -> str:
    """What pydantic found first, without its own way of saying so."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"])
    return str(error)
