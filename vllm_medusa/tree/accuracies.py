# SPDX-License-Identifier: Apache-2.0
"""Measured accuracies of the heads, and what a tree is worth under them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from vllm_medusa.errors import TreeError
from vllm_medusa.json_file import read_json
from vllm_medusa.tree.token_tree import MAX_RANKS, TokenTree
from vllm_medusa.wording import show

Accuracies = Sequence[Sequence[float]]
"""accuracy[h][r]: probability that the guess of rank r of head h + 1 is right."""

ACCURACY_KEY = "accuracy"
"""Where a JSON file holds such a table."""

_MAX_HEADS = 64
# Rounding of a table written with few digits.
_SUM_TOLERANCE = 1e-3


def check_accuracies(table: object) -> tuple[tuple[float, ...], ...]:
    """Return a table of accuracies as tuples, checked.

    Args:
        table: one row per head, all of one length, of probabilities per rank
            (not cumulative: a row sums to at most 1).

    Raises:
        TreeError: naming the entry that cannot be.
    """
    if not isinstance(table, list | tuple) or not table:
        raise TreeError("accuracies must be a non-empty list with one row per head")
    if len(table) > _MAX_HEADS:
        raise TreeError(f"accuracies for {len(table)} heads: at most {_MAX_HEADS}")
    for head, row in enumerate(table, start=1):
        _check_row(head, row)
        if len(row) != len(table[0]):
            raise TreeError(
                f"accuracies of head {head} have {len(row)} ranks but those of head 1 "
                f"have {len(table[0])}: give all heads the same ranks"
            )
    return tuple(tuple(float(value) for value in row) for row in table)


def _check_row(head: int, row: object) -> None:
    if not isinstance(row, list | tuple) or not 1 <= len(row) <= MAX_RANKS:
        raise TreeError(
            f"accuracies of head {head} must be a list of 1 to {MAX_RANKS} "
            "probabilities, one per rank"
        )
    for rank, value in enumerate(row):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # A comparison with NaN is False, so NaN is refused here too.
        if not is_number or not 0 <= value <= 1:
            raise TreeError(
                f"accuracy of head {head}, rank {rank} is {show(value)}: it must "
                "be a probability from 0 to 1"
            )
    if math.fsum(row) > 1 + _SUM_TOLERANCE:
        raise TreeError(
            f"accuracies of head {head} sum to {math.fsum(row):.3f}, more than 1: "
            "give the probability of each rank by itself, not of the top 1, top 2, …"
        )


def load_accuracies(path: str | os.PathLike[str]) -> tuple[tuple[float, ...], ...]:
    """Read a file that holds accuracies, accuracies.json or calibration.json:
    `{"accuracy": [[head 1 rank 0, rank 1, …], …], …}`.

    Raises:
        TreeError: the file is missing, is not such JSON, or the table is wrong.
    """
    data = read_json(path, "accuracies")
    if not isinstance(data, dict) or ACCURACY_KEY not in data:
        raise TreeError(f'accuracies file {path} lacks the key "{ACCURACY_KEY}"')
    try:
        return check_accuracies(data[ACCURACY_KEY])
    except TreeError as error:
        raise TreeError(f"accuracies file {path}: {error}") from None


def covers(accuracies: Accuracies, tree: TokenTree) -> bool:
    """Whether the table has every head and every rank of the tree."""
    return tree.max_depth <= len(accuracies) and tree.max_rank < len(accuracies[0])


def node_gains(tree: TokenTree, accuracies: Accuracies) -> tuple[float, ...]:
    """Probability that each row is accepted, length N + 1; the root's is 1.

    The accuracies of a path are multiplied: the heads are taken as independent,
    as in the paper's tree search (arXiv 2401.10774, section 2.3.3).

    Raises:
        TreeError: the table lacks a head or a rank of the tree.
    """
    table = check_accuracies(accuracies)
    if not covers(table, tree):
        raise TreeError(
            f"the tree is {tree.max_depth} deep with ranks up to {tree.max_rank}, but "
            f"the accuracies cover {len(table)} heads and ranks up to "
            f"{len(table[0]) - 1}"
        )
    gains = [1.0]
    for row in range(1, tree.num_nodes + 1):
        accuracy = table[tree.depths[row] - 1][tree.ranks[row]]
        gains.append(gains[tree.parents[row]] * accuracy)
    return tuple(gains)


def expected_tokens(tree: TokenTree, accuracies: Accuracies) -> float:
    """Tokens per step that the tree gives if the heads are right as in the table.

    One token always comes from the model itself, and each node adds the
    probability that its whole path is right.

    Raises:
        TreeError: the table lacks a head or a rank of the tree.
    """
    return math.fsum(node_gains(tree, accuracies))
