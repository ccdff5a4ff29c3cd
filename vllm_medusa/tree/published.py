# SPDX-License-Identifier: Apache-2.0
"""The nine trees published with the reference implementation.

They were searched for the reference heads of Vicuna and Zephyr (63 nodes each,
ranks 0 to 9, at most four heads deep), best node first.
Source: github.com/FasterDecoding/Medusa, medusa/model/medusa_choices.py.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from vllm_medusa.errors import TreeError
from vllm_medusa.tree.token_tree import TokenTree


@cache
def _paths_by_name() -> dict[str, list[list[int]]]:
    text = (files(__package__) / "published_trees.json").read_text("utf-8")
    paths: dict[str, list[list[int]]] = json.loads(text)
    return paths


def published_names() -> tuple[str, ...]:
    """Names that `published` knows."""
    return tuple(_paths_by_name())


def published(name: str) -> TokenTree:
    """Return a published tree by its name.

    Raises:
        TreeError: there is no tree of that name.
    """
    if name not in _paths_by_name():
        raise TreeError(
            f"no published tree is called {name!r}: choose one of "
            f"{', '.join(published_names())}"
        )
    return TokenTree.from_paths(_paths_by_name()[name])
