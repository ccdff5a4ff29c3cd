# SPDX-License-Identifier: Apache-2.0
"""Accepted rows move behind the prefix, in every layer, and nothing else changes."""

from __future__ import annotations

import random

import pytest
import torch

from tests.unit.verify.trees import random_tree, sibling_tokens, walk
from vllm_medusa.attention.cpu_cache import CpuRowStore, split_cache
from vllm_medusa.kv import move_rows, plan_moves
from vllm_medusa.verify import Verification, verify_exact

BLOCK_SIZE, NUM_KV_HEADS, HEAD_SIZE = 32, 2, 32


def accepted_paths(rows: list[list[int]]) -> Verification:
    """A verification that walked `rows` (root first) in each request."""
    width = max(map(len, rows))
    return Verification(
        torch.zeros(len(rows), width, dtype=torch.int64),
        torch.tensor([path + path[-1:] * (width - len(path)) for path in rows]),
        torch.tensor([len(path) - 1 for path in rows]),
    )


def make_caches(
    num_layers: int, num_blocks: int, contiguous: bool
) -> list[torch.Tensor]:
    """Caches in one allocation, layer after layer, or each in its own."""
    shape = (num_blocks, NUM_KV_HEADS, BLOCK_SIZE, 2 * HEAD_SIZE)
    if contiguous:
        return list(torch.randn(num_layers, *shape).unbind(0))
    return [torch.randn(shape) for _ in range(num_layers)]


def row_at(
    cache: torch.Tensor, table: torch.Tensor, position: int
) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = split_cache(cache)
    block, offset = int(table[position // BLOCK_SIZE]), position % BLOCK_SIZE
    return keys[block, :, :, offset].clone(), values[block, :, offset].clone()


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_rows_arrive(seed: int, contiguous: bool) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tree = random_tree(rng, 10)
    # Roots just before, on and after block boundaries.
    bases = [rng.choice([0, 5, 24, 30, 31, 32, 60]) for _ in range(6)]
    table = torch.randperm(6 * 4)[: 6 * 4].view(6, 4).to(torch.int32)
    caches = make_caches(3, 24, contiguous)
    before = [cache.clone() for cache in caches]

    tokens = [sibling_tokens(rng, tree, 12) for _ in bases]
    drawn = []
    for row_tokens in tokens:
        draws = [11] * 11
        for child, parent in list(enumerate(tree.parents))[1:]:
            if rng.random() < 0.8:
                draws[parent] = row_tokens[child]
        drawn.append(draws)
    verification = verify_exact(
        torch.tensor(tokens),
        torch.tensor(drawn),
        torch.tensor((0, *tree.parents[1:])).expand(6, -1),
        torch.tensor(tree.depths).expand(6, -1),
        torch.full((6,), 11),
        tree.max_depth,
    )
    moves = plan_moves(verification, torch.tensor(bases))
    assert moves is not None
    move_rows(moves, CpuRowStore.of(caches), table)

    for cache, old in zip(caches, before, strict=True):
        expected = old.clone()
        for i, base in enumerate(bases):
            path, _ = walk(tree, tokens[i], drawn[i], 11)
            for depth, row in enumerate(path):
                new_row = row_at(cache, table[i], base + depth)
                old_row = row_at(old, table[i], base + row)
                assert torch.equal(new_row[0], old_row[0])
                assert torch.equal(new_row[1], old_row[1])
                keys, values = split_cache(expected)
                block = int(table[i, (base + depth) // BLOCK_SIZE])
                offset = (base + depth) % BLOCK_SIZE
                keys[block, :, :, offset], values[block, :, offset] = old_row
        assert torch.equal(cache, expected), "a row that was not accepted changed"


def test_overlapping_moves() -> None:
    """Row 2 goes to 1 and row 3 to 2: the copy reads before it writes."""
    caches = make_caches(2, 4, contiguous=True)
    table = torch.tensor([[2, 0]])
    old = [[row_at(cache, table[0], 30 + r) for r in range(4)] for cache in caches]
    moves = plan_moves(accepted_paths([[0, 2, 3]]), torch.tensor([30]))
    assert moves is not None
    move_rows(moves, CpuRowStore.of(caches), table)
    for cache, rows in zip(caches, old, strict=True):
        for depth, row in ((0, 0), (1, 2), (2, 3), (3, 3)):
            new_row = row_at(cache, table[0], 30 + depth)
            assert torch.equal(new_row[0], rows[row][0])
            assert torch.equal(new_row[1], rows[row][1])


def test_nothing_to_move() -> None:
    """Paths along rows 0, 1, 2, … and rejected trees lie in place already."""
    bases = torch.tensor([7, 9, 11])
    assert plan_moves(accepted_paths([[0, 1, 2], [0], [0, 1]]), bases) is None
    moves = plan_moves(accepted_paths([[0, 1, 2], [0], [0, 4]]), bases)
    assert moves is not None
    assert (moves.request.tolist(), moves.source.tolist(), moves.target.tolist()) == (
        [2],
        [15],
        [12],
    )
