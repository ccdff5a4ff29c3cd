# SPDX-License-Identifier: Apache-2.0
"""What tree attention would get wrong is refused by name before the first request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from vllm_medusa.attention import cpu_cache
from vllm_medusa.attention.cpu import TreeCPUAttentionImpl
from vllm_medusa.errors import UnsupportedError

BLOCK_SIZE, HEAD_SIZE = 32, 64


def check(**features: Any) -> None:
    """Ask for the support of a layer with these features."""
    plain = {
        "alibi_slopes": None,
        "sinks": None,
        "is_fp8_kv_cache": False,
        "kv_cache_dtype": "auto",
        "num_kv_heads": 2,
        "head_size": HEAD_SIZE,
    }
    layer = SimpleNamespace(
        layer_name="model.layers.3.attn",
        isa=_get_attn_isa(torch.float32, BLOCK_SIZE, HEAD_SIZE),
        kv_cache=torch.zeros(1),
    )
    impl = SimpleNamespace(**{**plain, **features})
    TreeCPUAttentionImpl.check_support(impl, layer, BLOCK_SIZE)  # type: ignore[arg-type]


def test_plain_layer_is_supported() -> None:
    check()


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"alibi_slopes": torch.ones(4)}, "ALiBi"),
        ({"sinks": torch.ones(4)}, "sinks"),
        ({"is_fp8_kv_cache": True, "kv_cache_dtype": "fp8_e4m3"}, "fp8_e4m3"),
    ],
)
def test_features(features: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words) as raised:
        check(**features)
    assert "model.layers.3.attn" in str(raised.value)


def test_unknown_cache_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that keeps keys and values elsewhere is noticed, not misread."""

    def swapped(
        key: torch.Tensor,
        value: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        *rest: Any,
    ) -> None:
        write(value, key, key_cache, value_cache, *rest)

    write = cpu_cache.ops.cpu_attn_reshape_and_cache
    monkeypatch.setattr(cpu_cache.ops, "cpu_attn_reshape_and_cache", swapped)
    with pytest.raises(UnsupportedError, match="layout"):
        check()
