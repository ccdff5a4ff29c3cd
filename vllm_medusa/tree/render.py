# SPDX-License-Identifier: Apache-2.0
"""Drawing a token tree in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.text import Text
from rich.tree import Tree

from vllm_medusa.tree.token_tree import TokenTree


def draw(tree: TokenTree, gains: Sequence[float] | None = None) -> Tree:
    """Return the tree for rich to print, children in row order.

    Args:
        tree: the tree.
        gains: probability that each row is accepted, length N + 1, see
            `node_gains`; None leaves them out.
    """
    drawn = [Tree(Text("root (last sampled token) · row 0", style="bold"))]
    for row in range(1, tree.num_nodes + 1):
        label = Text(f"rank {tree.ranks[row]}", style="cyan")
        label.append(f" · row {row} · depth {tree.depths[row]}", style="default")
        if gains is not None:
            label.append(f" · gain {gains[row]:.3f}", style="green")
        drawn.append(drawn[tree.parents[row]].add(label))
    return drawn[0]


def summary(tree: TokenTree, gains: Sequence[float] | None = None) -> dict[str, Any]:
    """Return the totals of a tree, ready for JSON.

    Args:
        tree: the tree.
        gains: as for `draw`; without them the expected tokens are None.
    """
    return {
        "nodes": tree.num_nodes,
        "depth": tree.max_depth,
        "leaves": len(tree.leaves),
        "nodes_per_depth": list(tree.nodes_per_depth),
        "expected_tokens_per_step": None if gains is None else math.fsum(gains),
    }


def summary_text(totals: dict[str, Any]) -> str:
    """Return the totals of `summary` as lines of text."""
    expected = totals["expected_tokens_per_step"]
    lines = [
        f"nodes            {totals['nodes']}",
        f"depth            {totals['depth']}",
        f"leaves           {totals['leaves']}",
        f"nodes per depth  {', '.join(map(str, totals['nodes_per_depth']))}",
    ]
    if expected is not None:
        lines.append(f"expected tokens per step  {expected:.3f}")
    return "\n".join(lines)
