# SPDX-License-Identifier: Apache-2.0
"""What tree attention on GPUs would get wrong is refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.attention.backend import AttentionType

from vllm_medusa.attention.tree_support import check_layer
from vllm_medusa.errors import UnsupportedError

NAME = "model.layers.3.attn"


def layer(**features: Any) -> Any:
    impl = {
        "alibi_slopes": None,
        "sinks": None,
        "attn_type": AttentionType.DECODER,
        "kv_cache_dtype": "auto",
        "num_kv_heads": 2,
        "head_size": 64,
    }
    scale = torch.tensor(1.0)
    plain = {
        "layer_name": NAME,
        "kv_cache": torch.zeros(3, 2, 16, 128),
        "_q_scale": scale,
        "_k_scale": scale,
        "_v_scale": scale,
    }
    of_impl = {k: v for k, v in features.items() if k not in plain}
    return SimpleNamespace(
        **{**plain, **{k: v for k, v in features.items() if k in plain}},
        impl=SimpleNamespace(**{**impl, **of_impl}),
    )


BYTES = torch.zeros(3, 2, 16, 128, dtype=torch.uint8)


@pytest.mark.parametrize(
    "features",
    [
        {},
        {"kv_cache_dtype": "fp8", "kv_cache": BYTES},
        {"kv_cache_dtype": "fp8_e4m3", "kv_cache": BYTES},
        {"chunk_lookback": -1},
    ],
)
def test_supported(features: dict[str, Any]) -> None:
    check_layer(layer(**features))


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"alibi_slopes": torch.ones(4)}, "ALiBi"),
        ({"sinks": torch.ones(4)}, "sinks"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, "decoder layers"),
        ({"attn_type": AttentionType.ENCODER_DECODER}, "decoder layers"),
        ({"chunk_lookback": 1}, "chunked"),
        ({"kv_cache_dtype": "fp8_e5m2", "kv_cache": BYTES}, "fp8_e5m2"),
        ({"kv_cache_dtype": "int8_per_token_head", "kv_cache": BYTES}, "int8_per"),
        ({"kv_cache_dtype": "nvfp4", "kv_cache": BYTES}, "nvfp4"),
        (
            {"kv_cache_dtype": "fp8", "kv_cache": BYTES, "_k_scale": torch.ones(2)},
            "one per head",
        ),
        ({"kv_cache": torch.zeros(3, 2, 16, 136)}, "136"),
        ({"kv_cache": torch.zeros(2, 3, 2, 16, 64)}, "shape"),
    ],
)
def test_layers(features: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words) as raised:
        check_layer(layer(**features))
    assert NAME in str(raised.value)
