# SPDX-License-Identifier: Apache-2.0
"""The prefix parts of FlashAttention and xformers: what they are asked, and on a GPU
what they answer."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import vllm
from vllm.v1.attention.backends import fa_utils

from tests.unit.attention.cases import Case, make_case
from tests.unit.attention.prepared import Prepared
from tests.unit.attention.specs import FP8, LARGE, SMALL, Spec
from vllm_medusa.attention.cascade import CascadeTreeAttention
from vllm_medusa.attention.prefix_flash import FlashPrefix, FlashShape, SplitBound
from vllm_medusa.attention.prefix_reference import ReferencePrefix
from vllm_medusa.attention.xformers_attention import XformersTreeAttention
from vllm_medusa.attention.xformers_prefix import refusal

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MAX_NUM_REQS = 32
SPLITS = SplitBound(max_num_splits=32, max_graph_tokens=512)


def flash_shape(case: Case, version: int) -> FlashShape:
    _, block_size, num_kv_heads, head_size = case.kv.keys.shape
    return FlashShape(
        version=version,
        num_heads=case.query.shape[1],
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        block_size=block_size,
        dtype=case.query.dtype,
        has_soft_cap=case.scaling.soft_cap != 0.0,
    )


def flash_cascade(
    case: Case, version: int, splits: SplitBound = SPLITS
) -> CascadeTreeAttention:
    device = case.query.device
    prefix = FlashPrefix(flash_shape(case, version), MAX_NUM_REQS, splits, device)
    return CascadeTreeAttention(prefix, MAX_NUM_REQS, device)


def arguments_of(function: str) -> set[str]:
    """Argument names of vLLM's FlashAttention, read from its source: the module is
    there on every platform but imports only beside its CUDA extensions."""
    path = Path(vllm.__file__).parent / "vllm_flash_attn" / "flash_attn_interface.py"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return {argument.arg for argument in node.args.args}
    raise AssertionError(f"vLLM has no {function}")


class FakeFlash:
    """Notes what vLLM's functions are asked, after a check against their signatures,
    and answers with the reference."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.attended: list[dict[str, Any]] = []
        self.scheduled: list[dict[str, Any]] = []

    def flash_attn_varlen_func(self, **asked: Any) -> Any:
        assert asked.keys() <= arguments_of("flash_attn_varlen_func")
        self.attended.append(asked)
        case = self.case
        kv = replace(case.kv, keys=asked["k"], values=asked["v"])
        bases, scaling = asked["seqused_k"], case.scaling
        attended, lse = ReferencePrefix().attend(
            asked["q"], kv, case.trees, bases, asked["out"], scaling
        )
        asked["out"].copy_(attended)
        return asked["out"], lse

    def get_scheduler_metadata(self, **asked: Any) -> torch.Tensor:
        assert asked.keys() <= arguments_of("get_scheduler_metadata")
        self.scheduled.append(asked)
        # Of one request: a counter and four times four numbers.
        return torch.full((17,), len(self.scheduled), dtype=torch.int32)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeFlash:
    fake = FakeFlash(make_case(SMALL["several blocks"], CPU))
    for name in ("flash_attn_varlen_func", "get_scheduler_metadata"):
        monkeypatch.setattr(fa_utils, name, getattr(fake, name), raising=False)
    return fake


@pytest.mark.interpreter
@pytest.mark.parametrize("version", [2, 3, 4])
def test_flash_is_asked_for_the_prefix(fake: FakeFlash, version: int) -> None:
    case = fake.case
    case.check(Prepared(flash_cascade(case, version)))
    (asked,) = fake.attended
    assert asked["seqused_k"].tolist() == [75]
    assert asked["causal"] is False
    assert asked["fa_version"] == version
    assert asked["return_softmax_lse"] is True
    assert asked["max_seqlen_q"] == case.trees.width
    assert asked["max_seqlen_k"] == case.trees.max_seq_len
    assert asked["softmax_scale"] == case.scaling.scale
    assert asked["softcap"] == case.scaling.soft_cap
    assert asked["k_descale"] is asked["v_descale"] is None
    assert (asked["scheduler_metadata"] is not None) == (version == 3)


def test_schedule_is_made_once_per_step(fake: FakeFlash) -> None:
    """For the lengths of the prefix, and where a graph will look for it."""
    attention, trees = flash_cascade(fake.case, 3), fake.case.trees
    attention.prepare(trees)
    (asked,) = fake.scheduled
    assert asked["cache_seqlens"].tolist() == [75]
    assert asked["causal"] is False
    assert asked["num_splits"] == 32
    prefix = attention.prefix
    assert isinstance(prefix, FlashPrefix)
    place = prefix._schedule.data_ptr()
    # One number, and four for each request.
    assert prefix._schedule.shape == (1 + 4 * MAX_NUM_REQS,)
    assert prefix._schedule[:17].tolist() == [1] * 17
    prefix._schedule[17:] = 9
    attention.prepare(trees)
    assert prefix._schedule[:17].tolist() == [2] * 17
    assert (prefix._schedule[17:] == 0).all(), "left from an earlier step"
    assert prefix._schedule.data_ptr() == place


@pytest.mark.parametrize(
    ("version", "splits", "expected"),
    [
        (3, SPLITS, 32),
        (3, SplitBound(32, 3), 0),
        (3, SplitBound(), 0),
        (2, SPLITS, 0),
        (4, SPLITS, 0),
    ],
)
def test_splits(
    fake: FakeFlash, version: int, splits: SplitBound, expected: int
) -> None:
    """Bounded inside graphs of FlashAttention 3, else left to the kernel."""
    case = fake.case
    attention = flash_cascade(case, version, splits)
    attention.prepare(case.trees)
    bases = torch.tensor([75], dtype=torch.int32)
    output = torch.empty_like(case.query)
    attention.prefix.attend(
        case.query, case.kv, case.trees, bases, output, case.scaling
    )
    assert fake.attended[0]["num_splits"] == expected
    for asked in fake.scheduled:
        assert asked["num_splits"] == expected


def test_scales_of_a_quantised_cache(fake: FakeFlash) -> None:
    fake.case = case = make_case(SMALL["fp8 cache"], CPU)
    prefix = flash_cascade(case, 3).prefix
    bases = torch.tensor([18, 4], dtype=torch.int32)
    output = torch.empty_like(case.query)
    prefix.attend(case.query, case.kv, case.trees, bases, output, case.scaling)
    (asked,) = fake.attended
    for descale, scale in (("k_descale", 0.37), ("v_descale", 1.7)):
        # [num_reqs, num_kv_heads]
        torch.testing.assert_close(asked[descale], torch.full((2, 2), scale))


def _gpu_specs() -> dict[str, Spec]:
    return {
        name: replace(spec, sliding_window=None)
        for name, spec in LARGE.items()
        if spec.dtype != torch.float32 and spec.cache_dtype is None
    }


def _gpu_flash(case: Case) -> CascadeTreeAttention:
    version = fa_utils.get_flash_attn_version(head_size=case.query.shape[2])
    if version is None:
        pytest.skip("needs a GPU that FlashAttention supports")
    return flash_cascade(case, version)


@pytest.mark.gpu
@pytest.mark.parametrize("name", _gpu_specs())
def test_flash_on_a_gpu(name: str) -> None:
    case = make_case(_gpu_specs()[name], GPU)
    case.check(Prepared(_gpu_flash(case)))


@pytest.mark.gpu
def test_flash_with_quantised_cache_and_queries() -> None:
    """On Hopper; FlashAttention 3 rounds the weights of the softmax to 8 bits too."""
    spec = replace(LARGE[f"fp8 cache, {torch.bfloat16}"])
    case = make_case(spec, GPU)
    if fa_utils.get_flash_attn_version() != 3:
        pytest.skip("needs FlashAttention 3")
    shape = replace(flash_shape(case, 3), dtype=FP8)
    prefix = FlashPrefix(shape, MAX_NUM_REQS, SPLITS, GPU)
    attention = Prepared(CascadeTreeAttention(prefix, MAX_NUM_REQS, GPU))
    output = torch.zeros_like(case.query)
    attention.attend(case.query.to(FP8), case.kv, case.trees, output, case.scaling)
    torch.testing.assert_close(
        output.float().cpu(), case.expected, atol=8e-2, rtol=8e-2
    )


@pytest.mark.gpu
@pytest.mark.parametrize("name", _gpu_specs())
def test_xformers_on_a_gpu(name: str) -> None:
    pytest.importorskip("xformers", reason="needs xformers")
    spec = replace(_gpu_specs()[name], layout="nhd", soft_cap=0.0)
    case = make_case(spec, GPU)
    if reason := refusal(case.kv.keys, case.kv.values):
        pytest.skip(reason)
    case.check(Prepared(XformersTreeAttention(MAX_NUM_REQS, GPU)))


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["cascade", "xformers"])
def test_graph_follows_the_lengths(implementation: str) -> None:
    """Captured with one batch, replayed with another; no number reaches the host."""
    spec = Spec(
        rows=(16,) * 4,
        bases=(900, 40, 16, 0),
        num_heads=8,
        num_kv_heads=2,
        head_size=64,
        dtype=torch.bfloat16,
        max_seq_len=1024,
    )
    case = make_case(spec, GPU)
    if implementation == "cascade":
        attention = _gpu_flash(case)
    else:
        pytest.importorskip("xformers", reason="needs xformers")
        attention = XformersTreeAttention(MAX_NUM_REQS, GPU)
    output = torch.zeros_like(case.query)
    # A batch of the same rows and no context, as a dummy batch has none.
    trees = replace(case.trees, seq_lens=case.trees.seq_lens.clone())
    real = trees.seq_lens.clone()
    trees.seq_lens.fill_(16)

    def attend() -> None:
        attention.attend(case.query, case.kv, trees, output, case.scaling)

    attention.prepare(trees)
    attend()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trees.seq_lens.copy_(real)
        attention.prepare(trees)
        graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(
        output.float().cpu(), case.expected, atol=2e-2, rtol=2e-2
    )
