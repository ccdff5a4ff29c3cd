# SPDX-License-Identifier: Apache-2.0
"""Tokens per step, the expected speed-up, and the nodes that pay at each load."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from vllm_medusa.calibration.table import BatchTable, choose_table, speedups
from vllm_medusa.planning.steps import Roofline
from vllm_medusa.tree import TokenTree, covers, node_gains
from vllm_medusa.tree.accuracies import Accuracies
from vllm_medusa.tree.builders import optimal_up_to
from vllm_medusa.tree.resolve import MAX_DEFAULT_NODES

# Node counts to weigh against each other; the last one is the tree's own.
_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)


@dataclass(frozen=True)
class Expectation:
    """Tokens per step by number of nodes, under the accuracies or as the user says, and
    the depths of these trees."""

    tokens: dict[int, float]
    depths: dict[int, int]
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
        nodes = tree.num_nodes
        return Expectation(
            {nodes: tokens_per_step}, {nodes: tree.max_depth}, "--tokens-per-step"
        )
    if accuracies is None or not covers(accuracies, tree):
        return None
    tokens, depths = _truncations(tree, accuracies)
    if not has_own_tree:
        table = accuracies[:num_heads]
        best = optimal_up_to(table, MAX_DEFAULT_NODES)
        best_tokens, best_depths = _truncations(best, table)
        whole = tree.num_nodes
        tokens = best_tokens | {whole: tokens[whole]}
        depths = best_depths | {whole: depths[whole]}
    return Expectation(tokens, depths, "accuracies of the heads")


def _truncations(
    tree: TokenTree, accuracies: Accuracies
) -> tuple[dict[int, float], dict[int, int]]:
    """Tokens per step and depth of the tree's first nodes, for a choice of counts."""
    gains = list(accumulate(node_gains(tree, accuracies)))
    counts = [n for n in _COUNTS if n < tree.num_nodes] + [tree.num_nodes]
    tokens = {n: gains[n] for n in counts}
    return tokens, {n: tree.truncate(n).max_depth for n in counts}


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
    depths = (expectation.depths if expectation else {}) | {nodes: tree.max_depth}
    costs = {
        requests: {0: roofline.step(requests).seconds}
        | {n: roofline.step(requests, n, depth).seconds for n, depth in depths.items()}
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
            "heads_ms": 1e3 * roofline.step(requests, nodes, tree.max_depth).heads,
            "overhead": whole / plain,
        }
        if expectation is not None and table is not None:
            gains = speedups(costs[requests], expectation.tokens)
            best = next(n for first, last, n in table if first <= requests <= last)
            row |= {
                "tokens_per_step": expectation.tokens[nodes],
                "speedup": gains[nodes],
                "best_nodes": best,
                "best_speedup": gains[best] if best else 1.0,
            }
        rows.append(row)
    return rows, table
