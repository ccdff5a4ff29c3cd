# SPDX-License-Identifier: Apache-2.0
"""What vLLM decides by the name of the method, it decides for Medusa otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.config import vllm as config_module

from vllm_medusa import vllm_config
from vllm_medusa.engine_config import PROPOSER


@pytest.fixture(autouse=True)
def upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrap stand-ins, which tell what vLLM's own functions would see."""

    def post_init(self: Any) -> None:
        self.async_methods = set(vllm_config.get_args(config_module.NgramGPUTypes))

    def unsupported(self: Any) -> list[str]:
        return ["speculative method 'custom_class'", "something else"]

    def disable(self: Any) -> None:
        self.table = None

    monkeypatch.setattr(VllmConfig, "__post_init__", post_init)
    name = "_get_v2_model_runner_unsupported_features"
    monkeypatch.setattr(VllmConfig, name, unsupported)
    monkeypatch.setattr(
        VllmConfig, "_maybe_disable_dynamic_sd_for_v1", disable, raising=False
    )
    vllm_config.install()


def config(model: str | None) -> Any:
    """A configuration whose speculative model is `model`, or without one."""
    speculative = None if model is None else SimpleNamespace(model=model)
    return SimpleNamespace(speculative_config=speculative, table=[[1, 8, 4]])


def features(config: Any) -> list[str]:
    return VllmConfig._get_v2_model_runner_unsupported_features(config)


def test_medusa() -> None:
    medusa = config(PROPOSER)
    VllmConfig.__post_init__(medusa)
    assert {"custom_class", "ngram_gpu"} <= medusa.async_methods
    assert features(medusa) == ["something else"]
    VllmConfig._maybe_disable_dynamic_sd_for_v1(medusa)
    assert medusa.table == [[1, 8, 4]]


@pytest.mark.parametrize("model", [None, "package.OtherProposer"])
def test_everyone_else(model: str | None) -> None:
    other = config(model)
    VllmConfig.__post_init__(other)
    assert other.async_methods == {"ngram_gpu"}
    assert features(other) == ["speculative method 'custom_class'", "something else"]
    VllmConfig._maybe_disable_dynamic_sd_for_v1(other)
    assert other.table is None
