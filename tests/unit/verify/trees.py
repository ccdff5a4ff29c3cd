# SPDX-License-Identifier: Apache-2.0
"""Random trees, and a walk of them one request at a time."""

from __future__ import annotations

import random

from vllm_medusa.tree import TokenTree


def walk(
    tree: TokenTree, tokens: list[int], drawn: list[int], num_rows: int
) -> tuple[list[int], list[int]]:
    """From the root to the child that equals the draw: its rows and tokens."""
    row, rows, emitted = 0, [0], [drawn[0]]
    while True:
        children = [
            child
            for child in range(1, num_rows)
            if tree.parents[child] == row and tokens[child] == drawn[row]
        ]
        if not children:
            return rows, emitted
        row = children[0]
        rows.append(row)
        emitted.append(drawn[row])


def random_tree(rng: random.Random, num_nodes: int) -> TokenTree:
    """Parents before children, siblings of distinct rank."""
    parents, ranks, children = [-1], [-1], [0]
    for row in range(1, num_nodes + 1):
        parent = rng.randrange(row)
        parents.append(parent)
        ranks.append(children[parent])
        children[parent] += 1
        children.append(0)
    return TokenTree(tuple(parents), tuple(ranks))


def sibling_tokens(rng: random.Random, tree: TokenTree, vocab_size: int) -> list[int]:
    """Tokens of a random tree: those of siblings differ, as guesses of a head do."""
    tokens = [rng.randrange(vocab_size)]
    taken: dict[int, set[int]] = {}
    for parent in tree.parents[1:]:
        free = [
            t for t in range(vocab_size) if t not in taken.setdefault(parent, set())
        ]
        token = rng.choice(free)
        taken[parent].add(token)
        tokens.append(token)
    return tokens
