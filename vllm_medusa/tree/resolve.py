# SPDX-License-Identifier: Apache-2.0
"""The tree and the batch table that a configuration means for given heads."""

from __future__ import annotations

import os
from pathlib import Path

from vllm_medusa.batch_table import TABLE_KEY
from vllm_medusa.calibration.stored import Calibration, load_calibration
from vllm_medusa.config import MedusaConfig, check_num_speculative_tokens
from vllm_medusa.errors import ConfigError
from vllm_medusa.side_files import ACCURACIES_FILE, CALIBRATION_FILE, TREE_FILE
from vllm_medusa.tree.accuracies import Accuracies, load_accuracies, node_gains
from vllm_medusa.tree.builders import chain, from_file, optimal, optimal_up_to
from vllm_medusa.tree.specification import parse_tree, uses_accuracies
from vllm_medusa.tree.token_tree import TokenTree

MIN_GAIN = 0.05
"""A node worth fewer tokens per step than this is left out of a default tree: on a
small CPU one more row costs about that share of a step."""

MAX_DEFAULT_NODES = 64
"""Most nodes of a default tree; the speed-up is flat from here on (arXiv
2401.10774, figure 4)."""


def resolve_tree(config: MedusaConfig, folder: Path, num_heads: int) -> TokenTree:
    """Return the tree that `config` means for the heads in `folder`.

    Without a tree in `config` it is that of calibration.json in `folder`, else of
    tree.json, without the nodes that are too deep for the heads in use; else the best
    tree for the accuracies there, of the nodes worth at least `MIN_GAIN` each; else a
    chain over all heads. The files are read only where the tree depends on them.

    Args:
        config: its tree, num_heads and num_speculative_tokens are used.
        folder: where the heads lie.
        num_heads: heads that there are.

    Raises:
        ConfigError: there are fewer heads or nodes than `config` asks for.
        MedusaError: the tree is not possible with these heads, or a file that is
            read is damaged.
    """
    if config.num_heads is not None:
        if config.num_heads > num_heads:
            raise ConfigError(
                f"num_heads is {config.num_heads} but the checkpoint has only "
                f"{num_heads} heads"
            )
        num_heads = config.num_heads
    limit = config.num_speculative_tokens
    if config.tree is None:
        tree = _default_tree(folder, num_heads, limit)
    else:
        # A damaged file must not stand in the way of a tree that needs none.
        accuracies = accuracies_beside(folder) if uses_accuracies(config.tree) else None
        tree = parse_tree(config.tree, num_heads=num_heads, accuracies=accuracies)
    check_num_speculative_tokens(limit, tree.num_nodes)
    return tree if limit is None else tree.truncate(limit)


def resolve_batch_table(
    config: MedusaConfig, folder: Path, tree: TokenTree
) -> list[tuple[int, int, int]] | None:
    """Return the nodes by number of running requests, or None for the whole tree.

    "auto" takes that of calibration.json in `folder`, if there is one, and lowers
    entries that ask for more nodes than `tree` has.

    Returns:
        Sorted `(first, last, nodes)` entries, as vLLM's scheduler takes them.

    Raises:
        ConfigError: the table of `config` asks for more nodes than `tree` has, or
            calibration.json is damaged.
    """
    table = config.num_speculative_tokens_per_batch_size
    if table is None:
        return None
    if table == "auto":
        calibration = calibration_beside(folder)
        if calibration is None:
            return None
        return [
            (first, last, min(nodes, tree.num_nodes))
            for first, last, nodes in calibration.table
        ]
    for first, last, nodes in table:
        if nodes > tree.num_nodes:
            raise ConfigError(
                f"{TABLE_KEY} asks for {nodes} nodes at {first} to {last} requests, "
                f"but the tree has only {tree.num_nodes}"
            )
    return list(table)


def calibration_beside(folder: Path) -> Calibration | None:
    """Return calibration.json of the heads in `folder`, None without one.

    Raises:
        MedusaError: it is damaged.
    """
    path = folder / CALIBRATION_FILE
    return load_calibration(path) if os.path.lexists(path) else None


def accuracies_beside(folder: Path) -> Accuracies | None:
    """Return the accuracies of the heads in `folder`: those of calibration.json, else
    of accuracies.json, else None.

    Raises:
        MedusaError: the file is damaged.
    """
    calibration = calibration_beside(folder)
    if calibration is not None and calibration.accuracies is not None:
        return calibration.accuracies
    path = folder / ACCURACIES_FILE
    return load_accuracies(path) if os.path.lexists(path) else None


def _default_tree(folder: Path, num_heads: int, limit: int | None) -> TokenTree:
    calibration = calibration_beside(folder)
    if calibration is not None and calibration.tree is not None:
        return calibration.tree.limit_depth(num_heads)
    if os.path.lexists(folder / TREE_FILE):
        return from_file(folder / TREE_FILE).limit_depth(num_heads)
    accuracies = accuracies_beside(folder)
    if accuracies is None:
        return chain(num_heads)
    if limit is not None:
        return optimal(accuracies[:num_heads], limit)
    return _worthwhile(accuracies[:num_heads])


def _worthwhile(accuracies: Accuracies) -> TokenTree:
    tree = optimal_up_to(accuracies, MAX_DEFAULT_NODES)
    # In falling order, so those that are worth it come first; keep one at least.
    gains = node_gains(tree, accuracies)[1:]
    return tree.truncate(max(1, sum(gain >= MIN_GAIN for gain in gains)))
