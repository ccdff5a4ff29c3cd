# SPDX-License-Identifier: Apache-2.0
"""Tokens per step by number of nodes, from one measured run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_medusa.errors import ConfigError


def scale_expected(
    expected: Mapping[int, float], measured_nodes: int, measured: float
) -> dict[int, float]:
    """Expected tokens per step by nodes, scaled to what was measured at one of them.

    The measured accuracies of the heads give the shape of the curve; answers to other
    prompts, and guesses that are not independent, change its height. Only what goes
    beyond the one token of a plain step is scaled. ConfigError if `measured_nodes` has
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
