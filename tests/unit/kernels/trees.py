# SPDX-License-Identifier: Apache-2.0
"""Random batches of trees with draws that often agree with them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import chain

import torch


@dataclass(frozen=True)
class Trees:
    """Arguments of `walk_trees`, and the same as lists, one per request."""

    row_tokens: torch.Tensor
    drawn: torch.Tensor
    parents: torch.Tensor
    cu_num_logits: torch.Tensor
    max_depth: int
    tokens_of: list[list[int]]
    drawn_of: list[list[int]]
    parents_of: list[list[int]]

    @property
    def arguments(self) -> tuple:
        return (
            self.row_tokens,
            self.drawn,
            self.parents,
            self.cu_num_logits,
            self.max_depth,
        )


def depths_of(parents: list[int]) -> list[int]:
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    return depths


def random_trees(
    seed: int,
    *,
    shared: bool,
    distinct: bool,
    invalid: bool = False,
    dtype: torch.dtype = torch.int32,
) -> Trees:
    """Return trees of 1 to 12 rows, some of them cut, one or none of them empty.

    Args:
        seed: same seed, same trees.
        shared: all requests have the first rows of one tree, expanded.
        distinct: siblings hold different tokens.
        invalid: some tokens are -1, and so are some draws.
        dtype: of the rows' tokens.
    """
    rng = random.Random(seed)
    num_reqs, width = rng.randint(1, 4), rng.randint(1, 12)
    trees = [random_parents(rng, width) for _ in range(1 if shared else num_reqs)]
    parents = torch.tensor(trees, dtype=torch.int32).expand(num_reqs, width)
    max_depth = max(max(depths_of(tree)) for tree in trees) + rng.randint(0, 1)
    tokens_of, drawn_of, parents_of = [], [], []
    for request in range(num_reqs):
        num_rows = rng.randint(1, width)
        tree = trees[0 if shared else request][:num_rows]
        tokens, drawn = [rng.randint(0, 3) for _ in tree], []
        for row in range(num_rows):
            children = [child for child in range(1, num_rows) if tree[child] == row]
            if distinct:
                guesses = rng.sample(range(20), len(children))
                for child, token in zip(children, guesses, strict=True):
                    tokens[child] = token
            drawn.append(rng.randint(0, 3))
            if children and rng.random() < 0.8:
                drawn[row] = tokens[rng.choice(children)]
        if invalid:
            tokens = [-1 if rng.random() < 0.2 else token for token in tokens]
            drawn = [-1 if rng.random() < 0.2 else token for token in drawn]
        tokens_of.append(tokens)
        drawn_of.append(drawn)
        parents_of.append(tree)
    starts = torch.tensor([0, *map(len, tokens_of)]).cumsum(0).int()
    return Trees(
        row_tokens=torch.tensor(list(chain(*tokens_of)), dtype=dtype),
        drawn=torch.tensor(list(chain(*drawn_of))),
        parents=parents,
        cu_num_logits=starts,
        max_depth=max_depth,
        tokens_of=tokens_of,
        drawn_of=drawn_of,
        parents_of=parents_of,
    )


def random_parents(rng: random.Random, width: int) -> list[int]:
    """Parents of a tree, deep as often as broad."""
    reach = rng.choice([1, 2, 3, width])
    return [0, *(max(0, row - rng.randint(1, reach)) for row in range(1, width))]
