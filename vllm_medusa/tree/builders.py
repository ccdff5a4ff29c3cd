# SPDX-License-Identifier: Apache-2.0
"""Builders: a chain, a cartesian product, the optimal tree, a tree from a file."""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Sequence
from itertools import product

from vllm_medusa.errors import TreeError
from vllm_medusa.json_file import read_json
from vllm_medusa.tree.accuracies import Accuracies, check_accuracies
from vllm_medusa.tree.token_tree import MAX_NODES, MAX_RANKS, NodePath, TokenTree
from vllm_medusa.wording import show

PATHS_KEY = "paths"
"""Where a JSON object holds a tree."""


def chain(num_nodes: int) -> TokenTree:
    """Return the chain of each head's best guess: parents 0, 1, 2, …

    Raises:
        TreeError: `num_nodes` is not between 1 and `MAX_NODES`.
    """
    _check_count("chain", num_nodes)
    return TokenTree(tuple(range(-1, num_nodes)), (-1, *[0] * num_nodes))


def cartesian(widths: Sequence[int], accuracies: Accuracies | None = None) -> TokenTree:
    """Return the full product: every node at depth d - 1 has `widths[d - 1]` children.

    The first width is that of head 1: `cartesian((4, 2))` has 4 + 8 nodes. (In the
    text form a leading 1 stands for the root: "1x7x6" is (7, 6) here.) The
    nodes are ordered by their gain under `accuracies`, or under a prior typical
    of trained heads where the table is not given or too small.

    Raises:
        TreeError: a width is not between 1 and `MAX_RANKS`, or there are more than
            `MAX_NODES` nodes.
    """
    if not widths:
        raise TreeError("a cartesian tree needs at least one width, such as 4x2")
    for width in widths:
        if type(width) is not int or not 1 <= width <= MAX_RANKS:
            raise TreeError(
                f"width {show(width)} of a cartesian tree: widths go from 1 to "
                f"{MAX_RANKS}"
            )
    num_nodes = 0
    level = 1
    for width in widths:
        level *= width
        num_nodes += level
        if num_nodes > MAX_NODES:
            raise TreeError(
                f"the cartesian tree {show('x'.join(map(str, widths[:40])))} has more "
                f"than {MAX_NODES} nodes: give smaller widths"
            )
    table: Accuracies = prior_accuracies(len(widths), max(widths))
    if accuracies is not None:
        measured = check_accuracies(accuracies)
        if len(measured) >= len(widths) and len(measured[0]) >= max(widths):
            table = measured
    paths: list[NodePath] = []
    for depth in range(1, len(widths) + 1):
        paths.extend(product(*(range(width) for width in widths[:depth])))

    def best_first(path: Sequence[int]) -> tuple[float, int, Sequence[int]]:
        gain = math.prod(table[depth][rank] for depth, rank in enumerate(path))
        return -gain, len(path), path

    return TokenTree.from_paths(sorted(paths, key=best_first))


def optimal_up_to(accuracies: Accuracies, most_nodes: int) -> TokenTree:
    """Return the `optimal` tree of `most_nodes` nodes, or of all that the heads can
    make if these are fewer.

    Raises:
        TreeError: as `optimal`.
    """
    num_ranks = len(accuracies[0])
    possible = sum(num_ranks**depth for depth in range(1, len(accuracies) + 1))
    return optimal(accuracies, min(most_nodes, possible))


def optimal(
    accuracies: Accuracies,
    num_nodes: int,
    *,
    max_depth: int | None = None,
    max_rank: int | None = None,
) -> TokenTree:
    """Return the tree of `num_nodes` nodes with the most expected tokens per step.

    Best-first search over the products of accuracies (arXiv 2401.10774, section
    2.3.3). A node's gain is never more than its parent's, so the `num_nodes` paths
    of the largest gain are closed under taking the parent: they are a tree, and no
    other tree of that size has a larger sum of gains. The search takes exactly
    them, in falling order of gain, so truncation is optimal too.

    Args:
        accuracies: probability per head and rank, see `check_accuracies`.
        num_nodes: nodes of the tree, 1 to `MAX_NODES`.
        max_depth: use only the first `max_depth` heads.
        max_rank: use only ranks 0 to `max_rank`.

    Raises:
        TreeError: the table is wrong or too small for so many nodes.
    """
    _check_count("optimal", num_nodes)
    if max_depth is not None and max_depth < 1:
        raise TreeError(f"max_depth is {max_depth}: it must be at least 1")
    if max_rank is not None and max_rank < 0:
        raise TreeError(f"max_rank is {max_rank}: it must be at least 0")
    num_ranks = None if max_rank is None else max_rank + 1
    table = [row[:num_ranks] for row in check_accuracies(accuracies)[:max_depth]]
    # Noise can make a later rank better than an earlier one: best rank first.
    order = [
        sorted(range(len(row)), key=row.__getitem__, reverse=True) for row in table
    ]

    # (-gain, depth, path, index of the last rank in order[depth - 1], parent's gain)
    frontier: list[tuple[float, int, NodePath, int, float]] = []

    def offer(parent: NodePath, parent_gain: float, index: int) -> None:
        depth = len(parent)
        if depth < len(table) and index < len(order[depth]):
            rank = order[depth][index]
            gain = parent_gain * table[depth][rank]
            path = (*parent, rank)
            heapq.heappush(frontier, (-gain, depth + 1, path, index, parent_gain))

    offer((), 1.0, 0)
    paths: list[NodePath] = []
    while frontier and len(paths) < num_nodes:
        negative_gain, _, path, index, parent_gain = heapq.heappop(frontier)
        paths.append(path)
        offer(path[:-1], parent_gain, index + 1)  # the next best sibling
        offer(path, -negative_gain, 0)  # the best child
    if len(paths) < num_nodes:
        raise TreeError(
            f"{len(table)} heads with {len(table[0])} ranks give only {len(paths)} "
            f"nodes, not {num_nodes}: ask for fewer nodes"
        )
    return TokenTree.from_paths(paths)


def from_file(path: str | os.PathLike[str]) -> TokenTree:
    """Read a tree from JSON: a list of paths, or `{"paths": [...], …}`.

    Raises:
        TreeError: the file is missing, is not such JSON, or holds no valid tree.
    """
    data = read_json(path, "tree")
    if isinstance(data, dict):
        if PATHS_KEY not in data:
            raise TreeError(f'tree file {path} lacks the key "{PATHS_KEY}"')
        data = data[PATHS_KEY]
    try:
        return from_list(data)
    except TreeError as error:
        raise TreeError(f"tree file {path}: {error}") from None


def from_list(paths: object) -> TokenTree:
    """Return the tree of a non-empty list of paths, as JSON holds it.

    Raises:
        TreeError: it is no list, is empty, or holds no valid tree.
    """
    if not isinstance(paths, list | tuple):
        raise TreeError(
            "a tree is a list of paths such as [[0], [1], [0, 0]], not "
            f"{type(paths).__name__}"
        )
    if not paths:
        raise TreeError("the list of paths is empty: a tree needs at least one node")
    return TokenTree.from_paths(paths)


def _check_count(name: str, num_nodes: int) -> None:
    if type(num_nodes) is not int or not 1 <= num_nodes <= MAX_NODES:
        raise TreeError(
            f"{name}:{show(num_nodes)} is not possible: a tree has 1 to "
            f"{MAX_NODES} nodes"
        )


def prior_accuracies(num_heads: int, num_ranks: int) -> list[list[float]]:
    """Return accuracies of middling heads, to order a tree before any were measured.

    Roughly the published figures of the reference heads: each head is right 0.6
    times as often as the one before, each rank falls with the power 1.5.
    """
    return [
        [0.6 ** (head + 1) * 0.75 * (rank + 1) ** -1.5 for rank in range(num_ranks)]
        for head in range(num_heads)
    ]
