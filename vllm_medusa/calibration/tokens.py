# SPDX-License-Identifier: Apache-2.0
"""Tokens per step by number of nodes, from one measured run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from vllm_medusa.errors import ConfigError
from vllm_medusa.tree.accuracies import Accuracies, node_gains
from vllm_medusa.tree.builders import optimal_up_to
from vllm_medusa.tree.token_tree import TokenTree


def scale_expected(
    expected: Mapping[int, float], measured_nodes: int, measured: float
) -> dict[int, float]:
    """Expected tokens per step by nodes, scaled to what was measured at one of them.

    The measured accuracies of the heads give the shape of the curve; guesses that are
    not independent change its height. Only what goes beyond the one token of a plain
    step is scaled. ConfigError if `measured_nodes` has
    no expectation above 1.
    """
    gain = expected.get(measured_nodes, 1.0) - 1
    if gain <= 0:
        raise ConfigError(
            f"the accuracies expect nothing of {measured_nodes} node(s); measure the "
            "heads again"
        )
    factor = max(0.0, measured - 1) / gain
    return {nodes: 1 + factor * (value - 1) for nodes, value in expected.items()}


def usable_node_counts(candidates: Sequence[int], num_nodes: int) -> list[int]:
    """Candidates that a tree of `num_nodes` nodes has, and the whole tree, growing."""
    return sorted({n for n in candidates if 0 < n <= num_nodes} | {num_nodes})


def expected_by_nodes(
    tree: TokenTree, accuracies: Accuracies, node_counts: Sequence[int]
) -> dict[int, float]:
    """Expected tokens per step by number of nodes of `tree`, 0 nodes included.

    Raises:
        TreeError: the accuracies lack a head or a rank of the tree.
    """
    totals = list(accumulate(node_gains(tree, accuracies)))
    return {nodes: totals[nodes] for nodes in (0, *node_counts)}


def worthy_tree(accuracies: Accuracies, most_nodes: int) -> TokenTree:
    """The optimal tree of at most `most_nodes` nodes, without those worth nothing.

    Its first n nodes are the best tree of n nodes, for every n: one order holds the
    best tree of every batch size.

    Raises:
        ConfigError: no guess is worth anything.
    """
    tree = optimal_up_to(accuracies, most_nodes)
    worthy = sum(gain > 0 for gain in node_gains(tree, accuracies)[1:])
    if not worthy:
        raise ConfigError(
            "not one guess of the heads has any probability: are they of this model?"
        )
    return tree.truncate(worthy)
