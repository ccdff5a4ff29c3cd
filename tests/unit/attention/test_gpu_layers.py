# SPDX-License-Identifier: Apache-2.0
"""How layers come to use our backends, and builders the runner's trees."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import CUDAGraphMode
from vllm.platforms import current_platform
from vllm.v1.attention.backends.flex_attention import FlexAttentionBackend
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from tests.unit.attention.test_gpu_backends import attention_layer, triton_impl
from vllm_medusa.attention.cascade import CascadeTreeAttention
from vllm_medusa.attention.gpu_flash_attn import TreeFlashAttentionBackend
from vllm_medusa.attention.gpu_triton_attn import (
    TreeTritonAttentionBackend,
    TreeTritonAttentionMetadataBuilder,
)
from vllm_medusa.attention.layer_facts import LayerFacts
from vllm_medusa.attention.prefix_flash import SplitBound
from vllm_medusa.attention.prefix_reference import ReferencePrefix
from vllm_medusa.attention.tree_backend import tree_backend
from vllm_medusa.attention.tree_layers import TreeAttentions, connect_layers
from vllm_medusa.errors import UnsupportedError

CPU = torch.device("cpu")
SHAPE = (3, 2, 16, 64)


class Trees:
    def rows(self, common: Any, for_capture: bool) -> None:
        """No step has trees here."""


def config(layers: dict[str, Any]) -> Any:
    return SimpleNamespace(
        compilation_config=SimpleNamespace(
            static_forward_context=layers,
            max_cudagraph_capture_size=12,
            cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
        ),
        attention_config=SimpleNamespace(flash_attn_max_num_splits_for_cuda_graph=32),
        scheduler_config=SimpleNamespace(max_num_seqs=5),
    )


def group(layers: dict[str, Any], backend: Any = TreeTritonAttentionBackend) -> Any:
    builder = object.__new__(TreeTritonAttentionMetadataBuilder)
    return SimpleNamespace(
        layer_names=list(layers), backend=backend, metadata_builders=[builder]
    )


def plain_layers() -> dict[str, Any]:
    cache = torch.zeros(SHAPE, dtype=torch.float16)
    return {
        "a": attention_layer(triton_impl(), cache),
        "b": attention_layer(triton_impl(sliding_window=9), cache),
    }


@pytest.mark.interpreter
def test_connect() -> None:
    layers, trees = plain_layers(), Trees()
    one = group(layers)
    attentions = connect_layers(config(layers), [one], trees, "auto", CPU)
    assert attentions.names == ["triton"]
    (builder,) = one.metadata_builders
    assert builder.step_trees is trees
    assert builder.preparables == []
    for layer in layers.values():
        assert layer.impl.tree_attention.name == "triton"
    assert layers["a"].impl._scaling.sliding_window is None
    assert layers["b"].impl._scaling.sliding_window == 9


def test_cascades_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder prepares what its own layers use, each once."""
    made: list[CascadeTreeAttention] = []

    def of(self: TreeAttentions, layer: LayerFacts) -> CascadeTreeAttention:
        """The layers of a group share one, the next group has another."""
        if not made or layer.sliding_window is not None:
            made.append(CascadeTreeAttention(ReferencePrefix(), 2, CPU))
        return made[-1]

    monkeypatch.setattr(TreeAttentions, "of", of)
    cache = torch.zeros(SHAPE, dtype=torch.float16)
    first = {name: attention_layer(triton_impl(), cache) for name in ("a", "b")}
    second = {"c": attention_layer(triton_impl(sliding_window=9), cache)}
    groups = [group(first), group(second)]
    connect_layers(config({**first, **second}), groups, Trees(), "auto", CPU)
    assert [g.metadata_builders[0].preparables for g in groups] == [
        [made[0]],
        [made[1]],
    ]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (CUDAGraphMode.FULL_AND_PIECEWISE, SplitBound(32, 12)),
        (CUDAGraphMode.PIECEWISE, SplitBound()),
    ],
)
def test_bounds(
    mode: CUDAGraphMode, expected: SplitBound, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers have room for the padded batches of CUDA graphs."""
    monkeypatch.setattr(TreeAttentions, "of", lambda self, layer: None)
    layers = plain_layers()
    vllm_config = config(layers)
    vllm_config.compilation_config.cudagraph_mode = mode
    attentions = connect_layers(vllm_config, [group(layers)], Trees(), "auto", CPU)
    platform = attentions._platform
    assert platform.max_num_reqs == 12
    assert platform.max_head_size == 32
    assert platform.splits == expected


@pytest.mark.parametrize("impl", [object(), None])
def test_other_backends(impl: Any) -> None:
    """MLA, Mamba, and backends without a class here."""
    layers = {"model.layers.7.mixer": SimpleNamespace(impl=impl)}
    groups = [group(layers, FlexAttentionBackend)]
    with pytest.raises(UnsupportedError, match="FLEX_ATTENTION") as raised:
        connect_layers(config(layers), groups, Trees(), "auto", CPU)
    assert "model.layers.7.mixer" in str(raised.value)


def test_registry_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    names = AttentionBackendEnum
    theirs = names.FLASH_ATTN.get_class(), names.TRITON_ATTN.get_class()
    with tree_backend():
        assert names.FLASH_ATTN.get_class() is TreeFlashAttentionBackend
        assert names.TRITON_ATTN.get_class() is TreeTritonAttentionBackend
        assert names.FLASHINFER.get_path().startswith("vllm_medusa.attention.gpu_")
        assert not names.CPU_ATTN.is_overridden()
    assert (names.FLASH_ATTN.get_class(), names.TRITON_ATTN.get_class()) == theirs
    assert not names.FLASHINFER.is_overridden()


def test_registry_is_left_after_an_error() -> None:
    with pytest.raises(RuntimeError), tree_backend():
        assert AttentionBackendEnum.CPU_ATTN.is_overridden()
        raise RuntimeError
    assert not AttentionBackendEnum.CPU_ATTN.is_overridden()
