# SPDX-License-Identifier: Apache-2.0
"""Which implementation serves a layer, and why another can't."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from vllm_medusa.attention.choose import Option, choose
from vllm_medusa.attention.layer_facts import LayerFacts, PlatformFacts
from vllm_medusa.attention.prefix_flash import SplitBound
from vllm_medusa.attention.tree_layers import TreeAttentions
from vllm_medusa.errors import UnsupportedError

LAYER = LayerFacts(
    backend="FLASH_ATTN",
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    block_size=16,
    query_dtype=torch.bfloat16,
    cache_dtype=torch.bfloat16,
    flash_version=3,
)
HOPPER = PlatformFacts(
    device=torch.device("cuda"),
    capability=(9, 0),
    has_triton=True,
    max_num_reqs=8,
    max_head_size=128,
    splits=SplitBound(),
)
CPU = replace(HOPPER, device=torch.device("cpu"), capability=None)
FP8: dict[str, Any] = {
    "query_dtype": torch.float8_e4m3fn,
    "cache_dtype": torch.float8_e4m3fn,
}


@pytest.mark.parametrize(
    ("layer", "platform", "expected"),
    [
        ({}, {}, "cascade"),
        ({"flash_version": 2}, {"capability": (8, 0)}, "cascade"),
        ({"flash_version": 4}, {"capability": (10, 0)}, "cascade"),
        (
            {"flash_version": 4, "needs_whole_pages": True},
            {"capability": (10, 0)},
            "triton",
        ),
        ({"soft_cap": 30.0}, {}, "cascade"),
        ({"sliding_window": 4096}, {}, "triton"),
        (FP8, {}, "cascade"),
        ({**FP8, "flash_version": 4}, {"capability": (10, 0)}, "triton"),
        ({"backend": "FLASHINFER", "flash_version": None}, {}, "triton"),
        ({"backend": "TRITON_ATTN", "flash_version": None}, {}, "triton"),
        ({"backend": "TRITON_ATTN", "flash_version": None, **FP8}, {}, "triton"),
        ({}, {"capability": (7, 5)}, "triton"),
    ],
)
def test_auto(layer: dict[str, Any], platform: dict[str, Any], expected: str) -> None:
    facts = replace(LAYER, **layer)
    assert choose("auto", facts, replace(HOPPER, **platform)) == expected


@pytest.mark.parametrize("has_triton", [False, True])
def test_auto_on_a_cpu(has_triton: bool) -> None:
    layer = replace(LAYER, backend="CPU_ATTN", flash_version=None)
    platform = replace(CPU, has_triton=has_triton)
    assert choose("auto", layer, platform) == "cpu"
    assert TreeAttentions("auto", platform).of(layer) is None


@pytest.mark.parametrize("option", ["triton", "cascade", "xformers"])
def test_taken_at_its_word(option: Option) -> None:
    assert choose(option, LAYER, HOPPER) == option


@pytest.mark.parametrize("layer", [{}, {"sliding_window": 9}, {"soft_cap": 2.0}, FP8])
def test_triton_serves_all(layer: dict[str, Any]) -> None:
    assert choose("triton", replace(LAYER, **layer), HOPPER) == "triton"


@pytest.mark.parametrize(
    ("option", "layer", "platform", "reason", "instead"),
    [
        ("cascade", {"sliding_window": 4096}, {}, "4096", "attention=triton"),
        ("xformers", {"sliding_window": 4096}, {}, "4096", "attention=triton"),
        (
            "cascade",
            {"backend": "FLASHINFER", "flash_version": None},
            {},
            "lengths on the host",
            "--attention-backend FLASH_ATTN",
        ),
        (
            "cascade",
            {"backend": "TRITON_ATTN", "flash_version": None},
            {},
            "TRITON_ATTN",
            "--attention-backend FLASH_ATTN",
        ),
        (
            "cascade",
            {"flash_version": 4, "needs_whole_pages": True},
            {},
            "whole pages",
            "attention=triton",
        ),
        (
            "cascade",
            {**FP8, "flash_version": 4},
            {},
            "FlashAttention 4",
            "--kv-cache-dtype auto",
        ),
        ("xformers", {"soft_cap": 30.0}, {}, "soft cap", "attention=triton"),
        (
            "xformers",
            {"xformers_refusal": "xformers reads no such thing"},
            {},
            "no such thing",
            "attention=triton",
        ),
        ("cascade", {}, {"capability": (7, 5)}, "7.5", "attention=triton"),
        ("triton", FP8, {"capability": (8, 6)}, "8.6", "--kv-cache-dtype auto"),
        ("auto", FP8, {"capability": (8, 6)}, "8.6", "--kv-cache-dtype auto"),
        ("triton", {}, {"has_triton": False}, "Triton", "attention=auto"),
    ],
)
def test_refusals(
    option: Option,
    layer: dict[str, Any],
    platform: dict[str, Any],
    reason: str,
    instead: str,
) -> None:
    facts = replace(LAYER, **layer)
    with pytest.raises(UnsupportedError, match=reason) as raised:
        choose(option, facts, replace(HOPPER, **platform))
    assert instead in str(raised.value)


@pytest.mark.parametrize("option", ["cascade", "xformers"])
def test_no_gpu(option: Option) -> None:
    layer = replace(LAYER, backend="CPU_ATTN", flash_version=None)
    with pytest.raises(UnsupportedError, match="runs on cpu: use attention=auto"):
        choose(option, layer, CPU)


@pytest.mark.interpreter
def test_layers_share() -> None:
    """One Triton implementation for all layers, whatever their shapes."""
    attentions = TreeAttentions("triton", CPU)
    one = attentions.of(replace(LAYER, backend="CPU_ATTN", cache_dtype=torch.float32))
    other = attentions.of(replace(LAYER, sliding_window=7, num_heads=8))
    assert one is other is not None
    assert attentions.names == ["triton"]
