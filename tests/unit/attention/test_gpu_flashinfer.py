# SPDX-License-Identifier: Apache-2.0
"""vLLM's FlashInfer backend with trees; the package flashinfer itself is stood in for,
since it needs a GPU's driver to import."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.attention.cases import make_case
from tests.unit.attention.prepared import Prepared
from tests.unit.attention.test_gpu_backends import (
    DTYPE,
    HEAD_SIZE,
    MIXED,
    NUM_HEADS,
    NUM_KV_HEADS,
    NUM_TREE_TOKENS,
    Counted,
    Trees,
    attention_layer,
    cache_of,
    common_metadata,
)
from vllm_medusa.attention.cascade import CascadeTreeAttention
from vllm_medusa.attention.prefix_reference import ReferencePrefix

OURS = "vllm_medusa.attention.gpu_flashinfer"
THEIRS = "vllm.v1.attention.backends.flashinfer"


class _Anything(ModuleType):
    """A module that has whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Our module, imported beside a stand-in."""
    for name in ("flashinfer", *(f"flashinfer.{s}" for s in _SUBMODULES)):
        monkeypatch.setitem(sys.modules, name, _Anything(name))
    try:
        yield importlib.import_module(OURS)
    finally:
        for name in (OURS, THEIRS):
            sys.modules.pop(name, None)


_SUBMODULES = ("decode", "prefill", "utils")


def make_impl(flashinfer: Any) -> Any:
    """The implementation without its constructor, which asks a GPU."""
    impl = object.__new__(flashinfer.TreeFlashInferImpl)
    impl.__dict__.update(
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_size=HEAD_SIZE,
        scale=HEAD_SIZE**-0.5,
        alibi_slopes=None,
        sinks=None,
        sliding_window=(-1, -1),
        logits_soft_cap=None,
        kv_cache_dtype="auto",
    )
    return impl


def test_classes(flashinfer: Any) -> None:
    upstream = sys.modules[THEIRS]
    backend = flashinfer.TreeFlashInferBackend
    assert backend.get_name() == "FLASHINFER"
    assert not backend.forward_includes_kv_cache_update
    assert issubclass(backend.get_impl_cls(), upstream.FlashInferImpl)
    assert issubclass(backend.get_builder_cls(), upstream.FlashInferMetadataBuilder)


def test_metadata(flashinfer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the block table, which FlashInfer's own has no use for."""
    upstream = sys.modules[THEIRS].FlashInferMetadataBuilder
    monkeypatch.setattr(upstream, "build", lambda *_: SimpleNamespace())
    builder = object.__new__(flashinfer.TreeFlashInferMetadataBuilder)
    case, counted = make_case(MIXED, torch.device("cpu")), Counted()
    builder.step_trees, builder.preparables = Trees(case), [counted]
    metadata = builder.build(0, common_metadata(case))
    assert metadata.trees is builder.step_trees.answer
    assert metadata.block_table is case.kv.block_table
    assert counted.prepared == [metadata.trees]


@pytest.mark.interpreter
def test_forward(flashinfer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashInfer sees the whole batch; what it wrote for tree rows does not stay."""
    upstream = sys.modules[THEIRS].FlashInferImpl
    monkeypatch.setattr(upstream, "forward", lambda *args: args[7].fill_(3.0))
    case, impl = make_case(MIXED, torch.device("cpu")), make_impl(flashinfer)
    cache = cache_of(case)
    layer = attention_layer(impl, cache)
    layer.attn_backend = flashinfer.TreeFlashInferBackend
    impl.check_support(layer)
    facts = impl.facts(layer)
    assert (facts.backend, facts.soft_cap, facts.sliding_window) == (
        "FLASHINFER",
        0.0,
        None,
    )
    attention = CascadeTreeAttention(ReferencePrefix(), 8, torch.device("cpu"))
    impl.use(Prepared(attention), facts, layer)
    metadata = SimpleNamespace(
        trees=Trees(case).answer, block_table=case.kv.block_table
    )
    output = torch.zeros_like(case.query)
    unused = torch.empty(0)
    impl.forward(layer, case.query, unused, unused, cache, metadata, output)
    torch.testing.assert_close(
        output[:NUM_TREE_TOKENS].float(),
        case.expected[:NUM_TREE_TOKENS],
        atol=3e-3,
        rtol=3e-3,
    )
    assert (output[NUM_TREE_TOKENS:] == 3.0).all()
    assert output.dtype == DTYPE
