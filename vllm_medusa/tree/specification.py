# SPDX-License-Identifier: Apache-2.0
"""From what a user writes for a tree to the tree."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vllm_medusa.errors import TreeError
from vllm_medusa.json_file import parse_json
from vllm_medusa.reading import local_path
from vllm_medusa.tree.accuracies import Accuracies, check_accuracies
from vllm_medusa.tree.beam import BeamTree
from vllm_medusa.tree.builders import cartesian, chain, from_file, from_list, optimal
from vllm_medusa.tree.published import published, published_names
from vllm_medusa.tree.token_tree import MAX_NODES, TokenTree
from vllm_medusa.wording import show, suggest

_NUMBERED = re.compile(r"(chain|optimal):([0-9]{1,9})")
_CARTESIAN = re.compile(r"[0-9]{1,9}(x[0-9]{1,9})*")

POSSIBLE_TREES = (
    "chain, chain:N, optimal:N, beam:WIDTHxDEPTH, widths such as 1x7x6 (root, head 1, "
    "head 2), a JSON file, a list of paths such as [[0],[1],[0,0]], or one of "
    f"{', '.join(published_names())}"
)
"""What a tree may be, for messages and help texts."""


def parse_tree(
    value: str | Sequence[Sequence[int]],
    *,
    num_heads: int | None,
    accuracies: Accuracies | None = None,
) -> TokenTree:
    """Return the tree that `value` describes.

    Args:
        value: "chain" (over all heads), "chain:3", "1x7x6" (7 guesses of head 1, 6
            of head 2 under each; the 1 is the root, as in the reference's
            `medusa_choices`, and may be left out before a wider level), "optimal:N",
            "beam:5x3" (its tree for requests that need a fixed one), a published
            name, a JSON file, a list of paths or its JSON text.
        num_heads: heads that there are; None if that is not known, then no depth is
            refused.
        accuracies: table for "optimal:N" (needed there), also orders "1x7x6".

    Raises:
        TreeError: `value` is none of these, describes no valid tree, or the tree
            is deeper than there are heads.
    """
    if accuracies is not None:
        accuracies = check_accuracies(accuracies)[:num_heads]
    tree = _build(value, num_heads, accuracies)
    if num_heads is not None:
        tree.check_heads(num_heads)
    return tree


def check_tree_text(text: str) -> None:
    """Refuse a text that can describe no tree; files are not opened.

    Raises:
        TreeError: listing what is possible.
    """
    if text == "chain" or text in published_names() or is_file_name(text):
        return
    if text.startswith("["):
        from_list(parse_json(text, "the tree"))
    elif match := _NUMBERED.fullmatch(text):
        if not 1 <= int(match[2]) <= MAX_NODES:
            raise TreeError(
                f"{text} is not possible: a tree has 1 to {MAX_NODES} nodes"
            )
    elif _CARTESIAN.fullmatch(text):
        cartesian(_widths(text))
    elif BeamTree.parse(text) is not None:
        return
    else:
        raise _unknown(text)


def known_tree(value: str | Sequence[Sequence[int]]) -> TokenTree | None:
    """Return the tree if `value` alone defines it, without files and heads.

    Raises:
        TreeError: `value` describes no valid tree.
    """
    if isinstance(value, str) and (
        value == "chain" or value.startswith("optimal:") or is_file_name(value)
    ):
        return None
    return _build(value, None, None)


def uses_accuracies(value: str | Sequence[Sequence[int]]) -> bool:
    """Whether `parse_tree` makes use of accuracies: "optimal:N" needs them, widths such
    as "1x7x6" are ordered by them."""
    if not isinstance(value, str):
        return False
    return value.startswith("optimal:") or _CARTESIAN.fullmatch(value) is not None


def is_file_name(text: str) -> bool:
    """Whether `text` is meant as a file: it ends in .json or has a folder in it."""
    return not text.startswith("[") and (text.endswith(".json") or "/" in text)


def _build(
    value: str | Sequence[Sequence[int]],
    num_heads: int | None,
    accuracies: Accuracies | None,
) -> TokenTree:
    if not isinstance(value, str):
        return from_list(value)
    if value.startswith("["):
        return from_list(parse_json(value, "the tree"))
    if is_file_name(value):
        return from_file(local_path(value))
    if value == "chain":
        if num_heads is None:
            raise TreeError("chain needs a length where no heads are given: chain:4")
        return chain(num_heads)
    if match := _NUMBERED.fullmatch(value):
        count = int(match[2])
        if match[1] == "chain":
            return chain(count)
        if accuracies is None:
            raise TreeError(
                f"{value} needs measured accuracies: give heads with an "
                "accuracies.json or calibration.json beside them, or another tree"
            )
        return optimal(accuracies, count)
    if _CARTESIAN.fullmatch(value):
        return cartesian(_widths(value), accuracies)
    if (beam := BeamTree.parse(value)) is not None:
        return beam.fixed_tree()
    if value in published_names():
        return published(value)
    raise _unknown(value)


def _widths(text: str) -> list[int]:
    """Return the widths from head 1 down; a leading 1 stands for the root."""
    widths = [int(width) for width in text.split("x")]
    return widths[1:] if widths[0] == 1 else widths


def _unknown(text: str) -> TreeError:
    hint = suggest(text, ["chain", "optimal", "beam", *published_names()])
    return TreeError(f"unknown tree {show(text, 80)}{hint}: give {POSSIBLE_TREES}")
