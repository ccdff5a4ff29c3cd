# SPDX-License-Identifier: Apache-2.0
"""Grammars on trees: what a row allows follows from its own path.

vLLM's scheduler makes the bitmasks of structured outputs, for drafts that follow each
other. Every leaf of a tree ends such a chain: vLLM's own masks of those chains are the
masks of the rows on them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from vllm.v1.structured_output import StructuredOutputManager

from vllm_medusa.tree.token_tree import TokenTree

if TYPE_CHECKING:
    from vllm.v1.request import Request

    Masks = np.ndarray[tuple[int, int], np.dtype[np.int32]]
    """[num_rows, vocab_size / 32]: bit t % 32 of word t / 32 is 1 if t is allowed."""

Rows = tuple[int, ...]
"""Rows of a tree from depth 1 down; the root is not among them."""


# vLLM's own methods, which know chains.
_chain_bitmask = StructuredOutputManager.grammar_bitmask
_validate_chain = StructuredOutputManager.validate_tokens


def install() -> None:
    """Wrap the methods of `StructuredOutputManager` that see drafts.

    Chains stay as vLLM has them, and so does an engine without Medusa.
    """
    StructuredOutputManager.grammar_bitmask = _grammar_bitmask
    StructuredOutputManager.validate_tokens = _validate_tokens


@functools.wraps(_validate_chain)
def _validate_tokens(
    self: StructuredOutputManager, request: Request, spec_tokens: list[int]
) -> list[int]:
    # A draft that the grammar refuses stays: without it the next ones would be
    # other rows. Its parent's mask keeps it from being accepted.
    if masked_tree(self) is not None:
        return spec_tokens
    accepted: list[int] = _validate_chain(self, request, spec_tokens)
    return accepted


@functools.wraps(_chain_bitmask)
def _grammar_bitmask(
    self: StructuredOutputManager,
    requests: dict[str, Request],
    structured_output_request_ids: list[str],
    scheduled_spec_decode_tokens: dict[str, list[int]],
) -> Masks | None:
    arguments = requests, structured_output_request_ids, scheduled_spec_decode_tokens
    tree = masked_tree(self)
    if tree is None or not structured_output_request_ids:
        return _chain_bitmask(self, *arguments)
    return batch_masks(self, tree, *arguments)


def batch_masks(
    manager: StructuredOutputManager,
    tree: TokenTree,
    requests: Mapping[str, Request],
    req_ids: Sequence[str],
    drafts: Mapping[str, Sequence[int]],
) -> Masks:
    """Return what `StructuredOutputManager.grammar_bitmask` does, of trees.

    Args:
        manager: of an engine whose tree is `tree`.
        tree: the whole tree.
        requests: requests by id.
        req_ids: those with a grammar, at least one.
        drafts: tokens of the scheduled nodes by request, see `tree_masks`.
    """

    def chain_masks(req_id: str, tokens: list[int]) -> Masks:
        return _chain_bitmask(manager, requests, [req_id], {req_id: tokens})

    return np.concatenate(
        [
            tree_masks(
                tree,
                drafts.get(req_id, ()),
                functools.partial(_validate_chain, manager, requests[req_id]),
                functools.partial(chain_masks, req_id),
            )
            for req_id in req_ids
        ]
    )


def tree_masks(
    tree: TokenTree,
    drafts: Sequence[int],
    validate: Callable[[list[int]], list[int]],
    chain_masks: Callable[[list[int]], Masks],
) -> Masks:
    """Return the masks of one request's rows, in row order.

    Rows behind a draft that the grammar refuses, behind the end of its text or behind
    a placeholder can't be reached; they repeat their parent's mask.

    Args:
        tree: the whole tree.
        drafts: token of each scheduled node, those of the tree's first nodes;
            negative for a placeholder.
        validate: returns the longest beginning of a chain that the grammar accepts.
        chain_masks: returns the masks of the rows of an accepted chain, the root's
            first, and as many rows behind them as a request has room for. Its next
            call may overwrite them.

    Returns:
        A new array int32 [num_rows, vocab_size / 32] with 1 + len(drafts) rows and,
        where `chain_masks` gives room for the whole tree, as many as it gives.
    """
    paths = _accepted_paths(tree, drafts, validate)
    masks: Masks | None = None
    is_filled = [False] * (1 + len(drafts))
    # The longest first: the others may be beginnings of them.
    for path in sorted(paths, key=len, reverse=True):
        rows = [0, *path]
        if is_filled[rows[-1]]:
            continue
        chain = chain_masks([drafts[row - 1] for row in path])
        if masks is None:
            # vLLM 0.33 gives every request a block of equal size, which no path fills
            # but that of a whole chain.
            size = len(chain) if len(chain) > len(rows) else len(is_filled)
            masks = np.empty((size, chain.shape[1]), dtype=np.int32)
        masks[rows] = chain[: len(rows)]
        for row in rows:
            is_filled[row] = True
    assert masks is not None
    for row in range(1, len(is_filled)):
        if not is_filled[row]:
            masks[row] = masks[tree.parents[row]]
    return masks


def _accepted_paths(
    tree: TokenTree,
    drafts: Sequence[int],
    validate: Callable[[list[int]], list[int]],
) -> set[Rows]:
    """Return of each leaf's path the part that the grammar accepts."""
    accepted: set[Rows] = set()
    refused: set[int] = set()
    for path in _leaf_paths(tree, len(drafts)):
        tokens = []
        for row in path:
            if row in refused or drafts[row - 1] < 0:
                break
            tokens.append(drafts[row - 1])
        length = len(validate(tokens)) if tokens else 0
        refused.update(path[length:])
        accepted.add(path[:length])
    return accepted


@functools.cache
def _leaf_paths(tree: TokenTree, num_nodes: int) -> tuple[Rows, ...]:
    """Return the rows from the root to each leaf of the first `num_nodes` nodes; one
    empty path if there are none."""
    paths: list[Rows] = [()]
    for row in range(1, num_nodes + 1):
        paths.append((*paths[tree.parents[row]], row))
    parents = set(tree.parents[1 : num_nodes + 1])
    return tuple(path for row, path in enumerate(paths) if row not in parents)


_trees: WeakKeyDictionary[StructuredOutputManager, TokenTree | None]
_trees = WeakKeyDictionary()


def masked_tree(manager: StructuredOutputManager) -> TokenTree | None:
    """Return the tree that a manager's engine schedules; None where vLLM's own masks
    and checks of a chain are right."""
    if manager not in _trees:
        _trees[manager] = _scheduled_tree(manager.vllm_config)
    return _trees[manager]


def _scheduled_tree(vllm_config: Any) -> TokenTree | None:
    from vllm_medusa.engine_config import is_medusa, medusa_config, scheduled_tree

    speculative = vllm_config.speculative_config
    if speculative is None or not is_medusa(speculative):
        return None
    tree = scheduled_tree(vllm_config)
    # Rejection sampling must see all candidates: were those that the grammar refuses
    # taken out, what the others were drawn from would be another distribution.
    if medusa_config(vllm_config).acceptance == "rejection":
        return tree
    return None if tree.is_chain else tree
