# SPDX-License-Identifier: Apache-2.0
"""Merged lists against `torch.topk` over the whole vocabulary."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from vllm_medusa.kernels.merge_top_k import (
    merge_top_k,
    merge_top_k_reference,
    pack_top_k,
)

IMPLEMENTATIONS = pytest.mark.parametrize(
    "merge",
    [
        pytest.param(merge_top_k_reference, id="reference"),
        pytest.param(merge_top_k, id="kernel", marks=pytest.mark.interpreter),
    ],
)


# logits: [batch, num_heads, vocab]
def packed_shards(
    logits: torch.Tensor, bounds: list[int], k: int, totals: bool
) -> torch.Tensor:
    """What every rank has after the all-gather, for shards between `bounds`."""
    shards = []
    for first, last in pairwise(bounds):
        shard = logits[..., first:last]
        best, rows = shard.topk(min(k, last - first))
        total = shard.logsumexp(-1) if totals else None
        shards.append(pack_top_k(best, rows + first, k, total))
    return torch.stack(shards)


@IMPLEMENTATIONS
@pytest.mark.parametrize("totals", [False, True])
@pytest.mark.parametrize("k", [1, 3, 10, 40])
@pytest.mark.parametrize(
    "bounds", [[0, 40], [0, 20, 40], [0, 14, 28, 40], [0, 5, 10, 40, 40, 40]]
)
def test_equals_the_top_k_of_everything(merge, bounds, k, totals):
    # Distinct values: with ties torch.topk takes any of them.
    order = torch.stack([torch.randperm(40) for _ in range(2 * 3)])
    logits = order.view(2, 3, 40).float() / 7
    values, ids = merge(packed_shards(logits, bounds, k, totals), k)
    expected = (logits.log_softmax(-1) if totals else logits).topk(k)
    assert values.dtype == torch.float32 and ids.dtype == torch.int64
    torch.testing.assert_close(values, expected.values)
    assert torch.equal(ids, expected.indices)


@IMPLEMENTATIONS
def test_ties_go_by_shard_then_by_place(merge):
    first = pack_top_k(
        torch.tensor([[[5.0, 3.0, 3.0]]]), torch.tensor([[[9, 8, 7]]]), 3
    )
    second = pack_top_k(
        torch.tensor([[[5.0, 5.0, 3.0]]]), torch.tensor([[[1, 2, 3]]]), 3
    )
    assert merge(torch.stack([first, second]), 3)[1].tolist() == [[[9, 1, 2]]]
    assert merge(torch.stack([second, first]), 3)[1].tolist() == [[[1, 2, 9]]]


@IMPLEMENTATIONS
def test_all_logits_equal(merge):
    packed = packed_shards(torch.zeros(1, 1, 40), [0, 20, 40], 8, totals=True)
    values, ids = merge(packed, 8)
    assert torch.equal(ids, packed[0, ..., 8:16].long())
    torch.testing.assert_close(values, torch.full((1, 1, 8), -math.log(40)))


@IMPLEMENTATIONS
def test_nan_loses_and_ids_stay_those_of_the_lists(merge):
    logits = torch.tensor([[[math.nan, 2.0]], [[1.0, -math.inf]]])
    ids = torch.tensor([[[4, 5]], [[6, 7]]])
    packed = torch.stack([pack_top_k(logits[i][None], ids[i][None], 2) for i in (0, 1)])
    values, merged = merge(packed, 2)
    assert values.tolist() == [[[2.0, 1.0]]]
    assert merged.tolist() == [[[5, 6]]]
    nothing = torch.full_like(packed, math.nan)
    nothing[..., 2:] = packed[..., 2:]
    assert merge(nothing, 2)[1].tolist() == [[[4, 5]]]


@IMPLEMENTATIONS
def test_ids_up_to_the_limit_survive(merge):
    ids = torch.tensor([[[2**24 - 1, 2**24 - 2]]])
    packed = pack_top_k(torch.tensor([[[2.0, 1.0]]]), ids, 2)[None]
    assert torch.equal(merge(packed, 2)[1], ids)


@IMPLEMENTATIONS
def test_no_requests(merge):
    values, ids = merge(torch.zeros(2, 0, 3, 9), 4)
    assert values.shape == ids.shape == (0, 3, 4)
