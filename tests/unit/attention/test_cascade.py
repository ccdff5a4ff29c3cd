# SPDX-License-Identifier: Apache-2.0
"""The tree part merged with a prefix part, against dense attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.attention.cases import Case, make_case
from tests.unit.attention.causal import causal_attention
from tests.unit.attention.prepared import Prepared
from tests.unit.attention.specs import FP8, SMALL, Spec
from vllm_medusa.attention.cascade import CascadeTreeAttention
from vllm_medusa.attention.paged_kv import AttentionScaling, PagedKV
from vllm_medusa.attention.prefix_reference import ReferencePrefix
from vllm_medusa.attention.tree_part import (
    attend_tree_part,
    attend_tree_part_reference,
)
from vllm_medusa.attention.tree_rows import TreeRows
from vllm_medusa.errors import UnsupportedError

CPU = torch.device("cpu")
WITHOUT_WINDOW = [name for name, spec in SMALL.items() if spec.sliding_window is None]
WITH_WINDOW = [name for name in SMALL if name not in WITHOUT_WINDOW]
MAX_NUM_REQS = 8


class InPlacePrefix(ReferencePrefix):
    """Leaves its values in `output`, in the model's type, as FlashAttention does, and
    +inf for an empty prefix, as FlashAttention 2 does."""

    def attend(
        self,
        query: torch.Tensor,
        kv: PagedKV,
        trees: TreeRows,
        bases: torch.Tensor,
        output: torch.Tensor,
        scaling: AttentionScaling,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        attended, lse = super().attend(query, kv, trees, bases, output, scaling)
        rows = slice(int(trees.query_start_loc[-1]))
        output[rows] = attended[rows].to(output.dtype)
        return output, lse.nan_to_num(nan=torch.inf)


def cascade(prefix: ReferencePrefix, device: torch.device) -> Prepared:
    return Prepared(CascadeTreeAttention(prefix, MAX_NUM_REQS, device))


@pytest.mark.parametrize("name", WITHOUT_WINDOW)
def test_against_dense(name: str, triton_device: torch.device) -> None:
    case = make_case(SMALL[name], triton_device)
    case.check(cascade(ReferencePrefix(), triton_device))


@pytest.mark.parametrize("name", ["ragged", "padding", "bfloat16", "GQA 9/3"])
def test_merges_in_place(name: str, triton_device: torch.device) -> None:
    case = make_case(SMALL[name], triton_device)
    case.check(cascade(InPlacePrefix(), triton_device))


def test_wide_tree(triton_device: torch.device) -> None:
    """More rows than a block of keys or of queries has."""
    spec = Spec(rows=(81, 40), bases=(3, 17), num_heads=6, num_kv_heads=2)
    make_case(spec, triton_device).check(cascade(ReferencePrefix(), triton_device))


def test_chain_is_causal_attention(triton_device: torch.device) -> None:
    case = make_case(SMALL["chain"], triton_device)
    attended = case.attend(cascade(ReferencePrefix(), triton_device))
    torch.testing.assert_close(
        attended.cpu(), causal_attention(case), atol=2e-5, rtol=2e-5
    )


def test_quantised_queries(triton_device: torch.device) -> None:
    """Queries of 8 bits, their scale in the keys': as with numbers of 16 bits."""
    spec = replace(SMALL["fp8 cache"], dtype=torch.float16, cache_dtype=FP8)
    case = make_case(spec, triton_device)
    scale = 0.25
    rounded = (case.query.float() / scale).to(FP8)
    wide = rounded.float() * scale
    kv = case.kv
    assert kv.key_scale is not None
    in_keys = replace(kv, key_scale=kv.key_scale * scale)
    attention = cascade(ReferencePrefix(), triton_device)
    attended, expected = (
        torch.zeros(wide.shape, dtype=spec.dtype, device=triton_device)
        for _ in range(2)
    )
    attention.attend(rounded, in_keys, case.trees, attended, case.scaling)
    attention.attend(wide.half(), kv, case.trees, expected, case.scaling)
    torch.testing.assert_close(attended, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", WITHOUT_WINDOW)
def test_reference(name: str) -> None:
    """The PyTorch version of both parts; needs no Triton."""
    case = make_case(SMALL[name], CPU)
    case.check(_Reference())


@pytest.mark.parametrize("name", ["ragged", "soft cap", "no context, root alone"])
def test_kernel_against_reference(name: str, triton_device: torch.device) -> None:
    """The tree part alone, merged with a prefix of random values and sums."""
    case = make_case(SMALL[name], triton_device)
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randn(case.query.shape, generator=generator).to(triton_device)
    num_tokens, num_heads, _ = case.query.shape
    lse = torch.randn(num_heads, num_tokens, generator=generator).mul(3)
    # Beyond the range of the exponential function, both ways.
    lse[0], lse[1] = 300.0, -300.0
    lse = lse.to(triton_device)
    bases = case.trees.seq_lens - case.trees.query_start_loc.diff()
    written = []
    for attend in (attend_tree_part, attend_tree_part_reference):
        output = torch.zeros_like(prefix)
        attend(
            case.query, case.kv, case.trees, bases, prefix, lse, output, case.scaling
        )
        written.append(output)
    torch.testing.assert_close(*written, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", WITH_WINDOW)
def test_refuses_windows(name: str) -> None:
    case = make_case(SMALL[name], CPU)
    with pytest.raises(UnsupportedError, match="sliding window"):
        case.attend(cascade(ReferencePrefix(), CPU))


def test_bases() -> None:
    """Computed once, for all layers, where they lay a step before; never negative."""
    recorded = []

    class Recorder(ReferencePrefix):
        def prepare(self, trees: TreeRows, bases: torch.Tensor) -> None:
            recorded.append(bases)

    attention = CascadeTreeAttention(Recorder(), MAX_NUM_REQS, CPU)
    trees = make_case(SMALL["padding"], CPU).trees
    attention.prepare(trees)
    assert recorded[0].tolist() == [9, 33, 0, 0]
    # A dummy batch claims one token per sequence.
    attention.prepare(replace(trees, seq_lens=torch.ones(4, dtype=torch.int32)))
    assert recorded[1].tolist() == [0, 0, 1, 1]
    assert recorded[0].data_ptr() == recorded[1].data_ptr()


class _Reference:
    """Both parts in PyTorch."""

    name = "reference"

    def attend(
        self,
        query: torch.Tensor,
        kv: PagedKV,
        trees: TreeRows,
        output: torch.Tensor,
        scaling: AttentionScaling,
    ) -> None:
        bases = trees.seq_lens - trees.query_start_loc.diff()
        prefix = ReferencePrefix().attend(query, kv, trees, bases, output, scaling)
        attend_tree_part_reference(query, kv, trees, bases, *prefix, output, scaling)


def test_case_is_sharp() -> None:
    """A row that saw a sibling, or missed the prefix, would be noticed."""
    case = make_case(SMALL["several blocks"], CPU)
    ancestors = torch.ones_like(case.trees.ancestors).tril()
    all_earlier = replace(case.trees, ancestors=ancestors)
    wrong: Case = replace(case, trees=all_earlier)
    with pytest.raises(AssertionError):
        wrong.check(_Reference())
