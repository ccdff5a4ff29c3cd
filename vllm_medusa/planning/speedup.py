# SPDX-License-Identifier: Apache-2.0
"""Tokens per step, the expected speed-up, and the nodes that pay at each load."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from vllm_medusa.calibration.table import (
    BatchTable,
    choose_table,
    interpolate_costs,
    speedups,
)
from vllm_medusa.planning.steps import Roofline
from vllm_medusa.tree import TokenTree, covers, node_gains, optimal
from vllm_medusa.tree.accuracies import Accuracies

# Node counts to weigh against each other; the last one is the tree's own.
_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)
_MOST = 64


@dataclass(frozen=True)
class Expectation:
    """Tokens per step by number of nodes, under the accuracies or as the user says."""

    tokens: dict[int, float]
    source: str


def expect_tokens(
    tree: TokenTree,
    accuracies: Accuracies | None,
    tokens_per_step: float | None,
    num_heads: int,
    *,
    has_own_tree: bool,
) -> Expectation | None:
    """What the tree, its first nodes, or the best trees of the heads bring per step.

    Args:
        tree: of the plan.
        accuracies: of the heads, if they were measured.
        tokens_per_step: of `tree`, if the user knows; it wins.
        num_heads: heads in use.
        has_own_tree: whether the user chose the tree; else the best trees of every size
            are weighed.
    """
    if tokens_per_step is not None:
        return Expectation({tree.num_nodes: tokens_per_step}, "--tokens-per-step")
    if accuracies is None or not covers(accuracies, tree):
        return None
    gains = list(accumulate(node_gains(tree, accuracies)))
    tokens = {n: gains[n] for n in (*_COUNTS, tree.num_nodes) if n <= tree.num_nodes}
    if not has_own_tree:
        table = accuracies[:num_heads]
        ranks = len(table[0])
        possible = sum(ranks**depth for depth in range(1, len(table) + 1))
        best = optimal(table, min(_MOST, possible))
        gains = list(accumulate(node_gains(best, table)))
        tokens |= {n: gains[n] for n in _COUNTS if n <= best.num_nodes}
    return Expectation(tokens, "accuracies of the heads")


def step_table(
    roofline: Roofline,
    tree: TokenTree,
    expectation: Expectation | None,
    batch_sizes: list[int],
) -> tuple[list[dict[str, Any]], BatchTable | None]:
    """One row for each number of requests, and the nodes for all up to the largest.

    A row has "requests", "plain_ms", "tree_ms", "heads_ms", "overhead", and where
    tokens are expected "tokens_per_step", "speedup", "best_nodes" and "best_speedup"
    (0 and 1 where no tree pays).
    """
    nodes = tree.num_nodes
    counts = {nodes} | set(expectation.tokens if expectation else ())
    costs = {
        requests: {
            count: roofline.step(requests, count).seconds for count in (0, *counts)
        }
        for requests in batch_sizes
    }
    table = None
    if expectation is not None:
        table = choose_table(costs, expectation.tokens)
    rows = []
    for requests in batch_sizes:
        plain, whole = costs[requests][0], costs[requests][nodes]
        row: dict[str, Any] = {
            "requests": requests,
            "plain_ms": 1e3 * plain,
            "tree_ms": 1e3 * whole,
            "heads_ms": 1e3 * roofline.step(requests, nodes).heads,
            "overhead": whole / plain,
        }
        if expectation is not None and table is not None:
            gains = speedups(interpolate_costs(costs, requests), expectation.tokens)
            best = next(n for first, last, n in table if first <= requests <= last)
            row |= {
                "tokens_per_step": expectation.tokens[nodes],
                "speedup": gains[nodes],
                "best_nodes": best,
                "best_speedup": gains[best] if best else 1.0,
            }
        rows.append(row)
    return rows, table
