# SPDX-License-Identifier: Apache-2.0
"""Tree attention on the CPU against dense attention in float32, written out here."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from tests.unit.verify.trees import random_tree
from vllm_medusa.attention.cpu_cache import check_layout
from vllm_medusa.attention.cpu_kernel import CpuTreePlan, attend
from vllm_medusa.attention.reference import tree_attention
from vllm_medusa.attention.tree_batch import TreeBatch, TreeLayout
from vllm_medusa.tree import TokenTree, chain

TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}


def dense_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    parents: list[int],
    scale: float,
    window: int,
    soft_cap: float,
) -> torch.Tensor:
    """One tree, one row and one head at a time, in float64.

    query [rows, heads, size]; keys and values [base + rows, kv heads, size].
    """
    num_rows, num_heads, _ = query.shape
    base = keys.shape[0] - num_rows
    group = num_heads // keys.shape[1]
    output = torch.zeros_like(query, dtype=torch.float64)
    for row in range(num_rows):
        path, node = [], row
        while node != -1:
            path.insert(0, node)
            node = parents[node]
        # The text that this row sees, in its order: position = index.
        visible = [*range(base), *(base + node for node in path)]
        if window > 0:
            visible = visible[-window:]
        for head in range(num_heads):
            key = keys[visible, head // group].double()
            scores = key @ query[row, head].double() * scale
            if soft_cap:
                scores = soft_cap * (scores / soft_cap).tanh()
            weights = scores.softmax(0)
            output[row, head] = weights @ values[visible, head // group].double()
    return output.float()


class Case(NamedTuple):
    num_heads: int
    num_kv_heads: int
    head_size: int
    block_size: int = 32
    window: int = -1
    soft_cap: float = 0.0
    # Requests without a tree among those with one.
    mixed: bool = False
    # Some trees are cut to fewer rows.
    cut: bool = False


CASES = {
    "one head": Case(1, 1, 32),
    "grouped": Case(4, 2, 32),
    "nine and three": Case(9, 3, 64),
    "one kv head": Case(8, 1, 64, block_size=64),
    "large blocks": Case(4, 4, 128, block_size=128),
    "window": Case(4, 2, 32, window=20),
    "window inside the tree": Case(4, 2, 32, window=2),
    "soft cap": Case(4, 2, 64, soft_cap=2.0),
    "mixed": Case(4, 2, 32, mixed=True),
    "cut": Case(4, 2, 32, cut=True),
    "everything": Case(6, 2, 64, window=33, soft_cap=5.0, mixed=True, cut=True),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(4))
def test_against_dense(name: str, seed: int) -> None:
    """Random trees, context lengths, block tables; the cache written by vLLM."""
    case = CASES[name]
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tree = random_tree(rng, rng.randint(1, 12))
    full = tree.num_nodes + 1
    bases = [rng.choice([0, 1, 31, 32, 33, 64, 100, 127]) for _ in range(5)]
    num_rows = [rng.randint(2, full) if case.cut else full for _ in bases]
    if case.cut:
        num_rows[0] = full
    is_tree = [not case.mixed or i % 2 == 0 for i in range(len(bases))]
    # A request without a tree has three plain rows here.
    scheduled = [n if t else 3 for n, t in zip(num_rows, is_tree, strict=True)]

    max_blocks = -(-(127 + full + 1) // case.block_size) + 1
    num_blocks = max_blocks * len(bases)
    order = list(range(num_blocks))
    rng.shuffle(order)
    block_table = torch.tensor(order, dtype=torch.int32).view(len(bases), max_blocks)
    # Stale values everywhere: a row that looks at a wrong slot is far off.
    cache = torch.randn(
        num_blocks, case.num_kv_heads, case.block_size, 2 * case.head_size
    )
    cache *= 10.0
    isa = _get_attn_isa(torch.float32, case.block_size, case.head_size)
    contexts = []
    halves = cache.view(
        num_blocks, case.num_kv_heads, 2 * case.block_size, case.head_size
    )
    key_cache, value_cache = halves.chunk(2, dim=2)
    for i, (base, rows) in enumerate(zip(bases, scheduled, strict=True)):
        shape = (base + rows, case.num_kv_heads, case.head_size)
        key, value = torch.randn(shape), torch.randn(shape)
        positions = torch.arange(base + rows)
        blocks = block_table[i, positions // case.block_size].long()
        slots = blocks * case.block_size + positions % case.block_size
        ops.cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, slots, isa)
        contexts.append((key, value))

    starts = np.concatenate([[0], np.cumsum(scheduled)])
    requests = np.array([i for i, has_tree in enumerate(is_tree) if has_tree])
    batch = TreeBatch(
        request_indices=requests,
        row_starts=starts[requests],
        bases_np=np.array(bases)[requests],
        num_rows_np=np.array(num_rows)[requests],
        num_tokens=int(starts[-1]),
        layout=TreeLayout.of(
            tree.truncate(max(num_rows[i] for i in requests) - 1), torch.device("cpu")
        ),
    )
    plan = CpuTreePlan(
        batch,
        block_table,
        case.num_kv_heads,
        case.head_size,
        case.block_size,
        torch.float32,
    )
    query = torch.randn(int(starts[-1]), case.num_heads, case.head_size)
    untouched = 123.0
    output = torch.full_like(query, untouched)
    scale = case.head_size**-0.5
    # Twice: the second layer of a step reuses index, mask and buffers.
    for _ in range(2):
        output.fill_(untouched)
        attend(plan, query, cache, output, scale, case.window, case.soft_cap)

    for i, (key, value) in enumerate(contexts):
        rows = slice(starts[i], starts[i + 1])
        if not is_tree[i]:
            assert (output[rows] == untouched).all(), "a plain row was written"
            continue
        parents = list(tree.parents[: num_rows[i]])
        arguments = (query[rows], key, value)
        expected = dense_attention(
            *arguments, parents, scale, case.window, case.soft_cap
        )
        torch.testing.assert_close(output[rows], expected, **TOLERANCE)
        # The package's own reference agrees as well.
        cut = tree.truncate(num_rows[i] - 1)
        reference = tree_attention(
            *arguments,
            cut.ancestor_mask(),
            torch.tensor(cut.depths),
            scale,
            case.window if case.window > 0 else None,
            case.soft_cap,
        )
        torch.testing.assert_close(reference, expected, **TOLERANCE)


def test_chain_is_causal_attention() -> None:
    """A chain's mask is the causal one: equal to PyTorch's own causal attention."""
    torch.manual_seed(0)
    tree: TokenTree = chain(7)
    query, key, value = (torch.randn(8, 4, 32) for _ in range(3))
    output = tree_attention(
        query, key, value, tree.ancestor_mask(), torch.tensor(tree.depths), 32**-0.5
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        is_causal=True,
    )
    torch.testing.assert_close(output, expected.transpose(0, 1), **TOLERANCE)


@pytest.mark.parametrize("head_size", [32, 64, 80, 128])
@pytest.mark.parametrize("block_size", [32, 128])
def test_cache_layout_is_known(head_size: int, block_size: int) -> None:
    isa = _get_attn_isa(torch.float32, block_size, head_size)
    check_layout(isa, torch.float32, 2, head_size, block_size)
