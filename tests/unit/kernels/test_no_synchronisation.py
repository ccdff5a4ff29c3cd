# SPDX-License-Identifier: Apache-2.0
"""Fake tensors have shapes but no values: what needs a value on the host raises."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from vllm_medusa.kernels.merge_top_k import merge_top_k_reference, pack_top_k
from vllm_medusa.kernels.move_rows import move_rows_reference
from vllm_medusa.kernels.walk import walk_trees_reference

NUM_REQS, WIDTH, MAX_DEPTH = 3, 9, 4


def int32(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def test_fake_tensors_show_a_synchronisation():
    with FakeTensorMode():
        with pytest.raises(DataDependentOutputException):
            int32(1).item()
        with pytest.raises(DynamicOutputShapeException):
            int32(3).nonzero()


def test_walk_and_move():
    with FakeTensorMode():
        walk = walk_trees_reference(
            int32(20),
            int32(20).long(),
            int32(1, WIDTH).expand(NUM_REQS, WIDTH),
            int32(NUM_REQS + 1),
            MAX_DEPTH,
        )
        assert walk.tokens.shape == walk.rows.shape == (NUM_REQS, MAX_DEPTH + 1)
        views = [torch.zeros(8, 16, 2, 4, dtype=torch.bfloat16) for _ in range(2)]
        table, bases = int32(NUM_REQS, 5), int32(NUM_REQS)
        move_rows_reference(views, table, bases, walk.rows, walk.num_sampled)


@pytest.mark.parametrize("totals", [False, True])
def test_merge(totals):
    with FakeTensorMode():
        best, ids = torch.zeros(NUM_REQS, 2, 5), int32(NUM_REQS, 2, 5)
        total = torch.zeros(NUM_REQS, 2) if totals else None
        packed = pack_top_k(best, ids, 8, total)
        values, merged = merge_top_k_reference(torch.stack([packed, packed]), 8)
        assert values.shape == merged.shape == (NUM_REQS, 2, 8)
