# SPDX-License-Identifier: Apache-2.0
"""vLLM's refusal of an engine's arguments, as the user reads it."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, field_validator

from vllm_medusa.errors import CheckpointError, ConfigError
from vllm_medusa.vllm_refusal import vllm_refusal


class Options(BaseModel):
    """Refuses as vLLM's configurations do."""

    dtype: str

    @field_validator("dtype")
    @classmethod
    def _known(cls, value: str) -> str:
        raise ValueError(f"dtype {value} is unknown")


def test_pydantic_is_not_heard_of() -> None:
    with pytest.raises(ConfigError) as caught, vllm_refusal("tiny"):
        Options(dtype="int3")
    assert str(caught.value) == (
        "vLLM refuses the model tiny or an option: Value error, dtype int3 is unknown"
    )


def test_other_errors_stay() -> None:
    for error in (CheckpointError("heads"), OSError("disk"), RuntimeError("bug")):
        with pytest.raises(type(error)) as caught, vllm_refusal("tiny"):
            raise error
        assert caught.value is error
