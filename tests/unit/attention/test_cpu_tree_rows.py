# SPDX-License-Identifier: Apache-2.0
"""The PyTorch kernel on the rows of Model Runner V2, against dense attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.attention.cases import make_case
from tests.unit.attention.specs import SMALL
from vllm_medusa.attention.cpu_kernel import CpuTreePlan, attend
from vllm_medusa.attention.cpu_tree_rows import CpuTreeRows

NAMES = [
    name
    for name, spec in SMALL.items()
    if spec.dtype == torch.float32 and spec.head_size == 32 and any(spec.bases)
]


@pytest.mark.parametrize("name", NAMES)
def test_against_dense(name: str) -> None:
    """Trees of their own, cut trees, padding, windows, soft caps."""
    spec = replace(SMALL[name], layout="transposed")
    case = make_case(spec, torch.device("cpu"))
    # [num_blocks, num_kv_heads, block_size, 2 * head_size]
    cache = case.kv.keys._base
    assert cache is not None
    # vLLM's caches hold numbers; whole blocks are gathered, and times zero is zero.
    cache = cache.nan_to_num(50.0)
    plan = CpuTreePlan(
        CpuTreeRows(case.trees),
        case.kv.block_table,
        spec.num_kv_heads,
        spec.head_size,
        spec.block_size,
        spec.dtype,
    )
    output = torch.full(case.query.shape, 7.0)
    window = -1 if spec.sliding_window is None else spec.sliding_window
    scaling = case.scaling
    attend(plan, case.query, cache, output, scaling.scale, window, scaling.soft_cap)
    torch.testing.assert_close(output, case.expected, atol=2e-5, rtol=2e-5)


def test_padding_is_left_out() -> None:
    trees = make_case(SMALL["padding"], torch.device("cpu")).trees
    rows = CpuTreeRows(trees)
    assert rows.requests.tolist() == [0, 1]
    assert rows.num_rows.tolist() == [4, 2]
    assert rows.bases.tolist() == [9, 33]
    assert (rows.width, rows.num_tokens, rows.longest) == (4, 6, 35)
    assert not rows.is_dense
    # Padding repeats the last row in use.
    assert rows.token_rows.tolist() == [[0, 1, 2, 3], [4, 5, 5, 5]]


@pytest.mark.parametrize("is_whole_step", [False, True])
def test_dense(is_whole_step: bool) -> None:
    trees = make_case(SMALL["fixed tree"], torch.device("cpu")).trees
    rows = CpuTreeRows(replace(trees, is_whole_step=is_whole_step))
    assert rows.is_dense == is_whole_step
