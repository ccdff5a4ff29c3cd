# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs: those that the batch-size table can ask for, and how one is chosen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from vllm_medusa.runner.v2.model_graphs import cover, reachable_graphs
from vllm_medusa.runner.v2.reachable import nodes_by_batch_size, reachable_batch_sizes


def config(table: list[tuple[int, int, int]] | None, max_num_seqs: int = 16) -> Any:
    return SimpleNamespace(
        num_speculative_tokens=8,
        scheduler_config=SimpleNamespace(max_num_seqs=max_num_seqs),
        speculative_config=SimpleNamespace(
            uses_dynamic_speculative_decoding=lambda: table is not None,
            num_speculative_tokens_per_batch_size=table,
        ),
    )


def uniform(num_reqs: int, num_rows: int, loras: int = 0) -> BatchExecutionDescriptor:
    return BatchExecutionDescriptor(
        cg_mode=CUDAGraphMode.FULL,
        num_tokens=num_reqs * num_rows,
        num_reqs=num_reqs,
        uniform_token_count=num_rows,
        num_active_loras=loras,
    )


def piecewise(num_tokens: int) -> BatchExecutionDescriptor:
    return BatchExecutionDescriptor(
        cg_mode=CUDAGraphMode.PIECEWISE, num_tokens=num_tokens, num_reqs=None
    )


def test_nodes_by_batch_size() -> None:
    assert nodes_by_batch_size(config(None, 3)) == [8, 8, 8, 8]
    table = [(1, 2, 8), (3, 4, 2), (5, 16, 0)]
    assert nodes_by_batch_size(config(table))[1:7] == [8, 8, 2, 2, 0, 0]


@pytest.mark.parametrize(
    ("num_nodes", "reachable"),
    [
        # Batches of 1 and 2 have 8 nodes; 3 is padded to 4, 4 to 4.
        (8, {1, 2}),
        (2, {4}),
        (0, {8, 16}),
        (5, set()),
    ],
)
def test_reachable_batch_sizes(num_nodes: int, reachable: set[int]) -> None:
    schedule = nodes_by_batch_size(config([(1, 2, 8), (3, 4, 2), (5, 16, 0)]))
    assert reachable_batch_sizes((16, 1, 2, 4, 8), num_nodes, schedule) == reachable


def test_a_batch_that_is_padded_needs_the_next_size() -> None:
    """The table changes between two captured sizes: both sides are needed."""
    schedule = nodes_by_batch_size(config([(1, 5, 4), (6, 16, 1)]))
    sizes = (1, 2, 4, 8, 16)
    assert reachable_batch_sizes(sizes, 4, schedule) == {1, 2, 4, 8}
    assert reachable_batch_sizes(sizes, 1, schedule) == {8, 16}


def test_reachable_graphs() -> None:
    schedule = nodes_by_batch_size(config([(1, 2, 8), (3, 16, 0)]))
    sizes = (1, 2, 4, 8)
    every = [uniform(n, rows) for rows in (1, 9) for n in sizes] + [piecewise(64)]
    kept = reachable_graphs(every, schedule)
    assert kept == [
        uniform(4, 1),
        uniform(8, 1),
        uniform(1, 9),
        uniform(2, 9),
        piecewise(64),
    ]


def test_each_number_of_rows_has_its_own_next_graph() -> None:
    """27 tokens are three trees of 9 rows, or a padded batch of another tree: a graph
    of 30 tokens for trees of 5 rows must not hide the one of 36 for trees of 9."""
    full = [uniform(1, 9), uniform(4, 9), uniform(2, 5), uniform(6, 5)]
    candidates = cover(full, cover([piecewise(16), piecewise(32)]))
    assert candidates[27, 0] == [uniform(4, 9), uniform(6, 5), piecewise(32)]
    assert candidates[9, 0] == [uniform(1, 9), uniform(2, 5), piecewise(16)]
    assert candidates[33, 0] == [uniform(4, 9)]
    assert (37, 0) not in candidates


def test_lora_cases_stay_apart() -> None:
    candidates = cover([uniform(2, 3), uniform(4, 3, loras=1)])
    assert candidates[5, 0] == [uniform(2, 3)]
    assert candidates[5, 1] == [uniform(4, 3, loras=1)]
