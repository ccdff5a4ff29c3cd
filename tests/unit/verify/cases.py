# SPDX-License-Identifier: Apache-2.0
"""Trees, logits and draft probabilities for `verify_rejection`."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from tests.unit.verify.markov import in_order_of_draws
from tests.unit.verify.trees import random_tree
from vllm_medusa.noise import Stream, exponential
from vllm_medusa.tree import TokenTree
from vllm_medusa.verify import Verification, verify_rejection

VOCAB = 300


@dataclass
class Case:
    """Arguments of `verify_rejection` for trees of the same number of rows."""

    trees: list[TokenTree]
    tokens: torch.Tensor
    logits: torch.Tensor
    rows: torch.Tensor
    draft_probs: torch.Tensor
    draft_token_ids: torch.Tensor | None
    num_rows: torch.Tensor

    @property
    def seeds(self) -> torch.Tensor:
        return torch.arange(len(self.trees)) * 1000

    @property
    def positions(self) -> torch.Tensor:
        return torch.arange(len(self.trees)) + 50

    @property
    def max_depth(self) -> int:
        return max(tree.max_depth for tree in self.trees)

    @property
    def parents(self) -> torch.Tensor:
        return torch.tensor([[0, *tree.parents[1:]] for tree in self.trees])

    @property
    def depths(self) -> torch.Tensor:
        return torch.tensor([tree.depths for tree in self.trees])

    @property
    def max_children(self) -> list[int]:
        most = [0] * self.max_depth
        for tree in self.trees:
            for row, children in enumerate(tree.children):
                if children:
                    depth = tree.depths[row]
                    most[depth] = max(most[depth], len(children))
        return most

    def run(self) -> Verification:
        return verify_rejection(
            self.tokens,
            self.logits,
            self.rows,
            self.draft_probs,
            self.draft_token_ids,
            self.parents,
            self.depths,
            self.num_rows,
            self.seeds,
            self.positions,
            self.max_children,
            self.max_depth,
        )


def case(seed: int, batch: int = 8, num_nodes: int = 7, sharpness: float = 1.0) -> Case:
    """Different, cut trees; a draft vocabulary; p and q with zeros; q like p."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    trees = [random_tree(rng, num_nodes) for _ in range(batch)]
    max_depth = max(tree.max_depth for tree in trees)
    ids = torch.randperm(VOCAB, generator=generator)[:40] if seed % 2 else None
    columns = torch.arange(VOCAB) if ids is None else ids
    common = normal(VOCAB) * 3
    # Rows of the trees lie in any order among other rows.
    num_logits = batch * (num_nodes + 1) + 5
    logits = (common + normal(num_logits, VOCAB)) * sharpness
    logits[torch.rand(logits.shape, generator=generator) < 0.2] = -torch.inf
    rows = torch.randperm(num_logits, generator=generator)[: batch * (num_nodes + 1)]
    scores = common[columns] + 2 * normal(batch, max_depth, len(columns))
    scores[torch.rand(scores.shape, generator=generator) < 0.2] = -torch.inf
    q = scores.softmax(2)
    seeds = torch.arange(batch)[:, None, None]
    drawn = in_order_of_draws(
        scores,
        exponential(
            Stream.DRAFT,
            seeds,
            seeds,
            torch.arange(max_depth)[:, None],
            torch.arange(len(columns)),
        ),
    )
    tokens = torch.zeros(batch, num_nodes + 1, dtype=torch.int64)
    for i, tree in enumerate(trees):
        for children in tree.children:
            for ordinal, child in enumerate(children):
                slot = drawn[i, tree.depths[child] - 1, ordinal]
                tokens[i, child] = columns[slot]
    num_rows = [rng.randint(1, num_nodes + 1) for _ in range(batch)]
    return Case(
        trees, tokens, logits, rows.view(batch, -1), q, ids, torch.tensor(num_rows)
    )
