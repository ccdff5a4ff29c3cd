# SPDX-License-Identifier: Apache-2.0
"""One fixed tree through vLLM's kernel, and which kernel a batch gets.

The interpreter gets one line of vLLM's kernel wrong: it joins two masks with `and`,
which the compiler takes element by element and Python does not. On the CPU the tests
put their own function there, so what they prove is how the kernel is called; on a GPU
they run the kernel as it is.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from vllm.triton_utils import tl, triton
from vllm.v1.attention.ops import triton_unified_attention

from tests.unit.attention.cases import Case, make_case, tree_of
from tests.unit.attention.causal import causal_attention
from tests.unit.attention.devices import skip_unless_triton_takes
from tests.unit.attention.specs import LARGE, SMALL, Spec
from vllm_medusa.attention.triton_choice import (
    FixedTreeAttention,
    triton_tree_attention,
)
from vllm_medusa.attention.triton_tree import TritonTreeAttention
from vllm_medusa.attention.triton_unified import UnifiedTreeAttention
from vllm_medusa.errors import TreeError, UnsupportedError


def fixed(specs: dict[str, Spec]) -> dict[str, Spec]:
    """Every case with one tree for all requests, and windows left out."""
    return {
        name: spec if spec.trees == "chain" else replace(spec, trees="fixed")
        for name, spec in specs.items()
        if spec.sliding_window is None
    }


@triton.jit
def _bias_of_tile(
    row_ptrs: tl.tensor, slots: tl.tensor, base: tl.tensor, width: tl.tensor
) -> tl.tensor:
    key_rows = slots - base
    is_tree = (key_rows >= 0) & (key_rows < width)
    return tl.load(row_ptrs + key_rows[None, :], mask=is_tree[None, :], other=0.0)


@pytest.fixture(autouse=True)
def elementwise_and(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.get_closest_marker("interpreter"):
        monkeypatch.setattr(
            triton_unified_attention, "load_qq_bias_tile", _bias_of_tile
        )


# Rows that pad a request see nothing, and divide nothing by nothing.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")

FIXED, FIXED_LARGE = fixed(SMALL), fixed(LARGE)


def unified(case: Case) -> UnifiedTreeAttention:
    # The tree is wider than the batch: it verifies the first rows.
    return UnifiedTreeAttention(case.trees.ancestors[0])


@pytest.mark.parametrize("name", FIXED)
def test_small(name: str, triton_device: torch.device) -> None:
    spec = FIXED[name]
    skip_unless_triton_takes(spec, triton_device)
    if triton_device.type == "cuda" and spec.dtype == torch.float32:
        pytest.skip("vLLM's kernel rounds float32 to tf32")
    case = make_case(spec, triton_device)
    case.check(unified(case))


@pytest.mark.gpu
@pytest.mark.parametrize("name", FIXED_LARGE)
def test_large(name: str) -> None:
    spec = FIXED_LARGE[name]
    skip_unless_triton_takes(spec, torch.device("cuda"))
    if spec.dtype == torch.float32:
        pytest.skip("vLLM's kernel rounds float32 to tf32")
    case = make_case(spec, torch.device("cuda"))
    case.check(unified(case))


@pytest.mark.interpreter
def test_chain_is_causal_attention() -> None:
    case = make_case(SMALL["chain"], torch.device("cpu"))
    torch.testing.assert_close(
        case.attend(unified(case)), causal_attention(case), atol=2e-5, rtol=2e-5
    )


def test_refuses_what_it_would_get_wrong() -> None:
    cpu = torch.device("cpu")
    case = make_case(SMALL["window of a fixed tree"], cpu)
    with pytest.raises(UnsupportedError, match="counts a sliding window in slots"):
        case.attend(unified(case))
    case = make_case(SMALL["fixed tree"], cpu)
    narrow = UnifiedTreeAttention(tree_of([0, 0, 1])[0])
    with pytest.raises(TreeError, match=r"requests of 8 rows .* a tree of 3"):
        case.attend(narrow)


class Recorder:
    """Notes the calls of an implementation in place of attending."""

    name = "triton"

    def __init__(self) -> None:
        self.calls = 0

    def attend(self, *_: object) -> None:
        self.calls += 1


def calls_of(spec: Spec, num_processors: int) -> tuple[int, int]:
    """Return how often vLLM's kernel and ours attend a batch."""
    cpu = torch.device("cpu")
    case = make_case(spec, cpu)
    ours = TritonTreeAttention(cpu, spec.head_size, num_processors)
    by_vllm, by_us = Recorder(), Recorder()
    by_us.num_parts = ours.num_parts  # type: ignore[attr-defined]
    choice = FixedTreeAttention(by_vllm, by_us)  # type: ignore[arg-type]
    case.attend(choice)
    return by_vllm.calls, by_us.calls


def test_each_batch_gets_a_kernel_that_is_right_and_fills_the_device() -> None:
    spec = Spec(
        rows=(8, 8),
        bases=(20, 35),
        trees="fixed",
        dtype=torch.float16,
        max_seq_len=1000,
    )
    assert calls_of(spec, num_processors=1) == (1, 0)
    assert calls_of(spec, num_processors=132) == (0, 1)
    windowed = replace(spec, sliding_window=100)
    assert calls_of(windowed, num_processors=1) == (0, 1)
    precise = replace(spec, dtype=torch.float32)
    assert calls_of(precise, num_processors=1) == (0, 1)


def test_factory() -> None:
    cpu = torch.device("cpu")
    ancestors, _ = tree_of([0, 0, 0, 1])
    assert isinstance(triton_tree_attention(cpu, 64), TritonTreeAttention)
    assert isinstance(triton_tree_attention(cpu, 64, ancestors), FixedTreeAttention)


@pytest.mark.interpreter
def test_fixed_tree_whole() -> None:
    """The chosen kernel writes the answer, whichever it is."""
    case = make_case(SMALL["fp8 cache, fixed tree"], torch.device("cpu"))
    case.check(triton_tree_attention(torch.device("cpu"), 32, case.trees.ancestors[0]))
    case = make_case(SMALL["window of a fixed tree"], torch.device("cpu"))
    case.check(triton_tree_attention(torch.device("cpu"), 32, case.trees.ancestors[0]))
