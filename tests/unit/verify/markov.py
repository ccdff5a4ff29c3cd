# SPDX-License-Identifier: Apache-2.0
"""A toy language model, heads for it, and text that a verified tree makes of them.

The next token depends on the last one alone, so that the logits of a tree row are
those of the row's token. A sample is a request: one call verifies all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import torch
import torch.nn.functional as F

from tests.engine.support.law import Law
from vllm_medusa import noise
from vllm_medusa.tree import TokenTree
from vllm_medusa.verify import PLACEHOLDER, Verification


@dataclass(frozen=True)
class Toy:
    """A target model and its heads."""

    logits: torch.Tensor
    """[vocab_size, vocab_size] float32, by last token."""
    draft_logits: torch.Tensor
    """[vocab_size, num_heads, draft_vocab_size] float32, by root token."""
    draft_token_ids: torch.Tensor | None = None
    """[draft_vocab_size] int64."""

    @property
    def draft_probs(self) -> torch.Tensor:
        """Of the same shape."""
        return self.draft_logits.softmax(2)

    def law(self, start: int, length: int) -> Law:
        """Probability of each continuation of `start`, by ancestral sampling."""
        probs = self.logits.double().softmax(1).tolist()
        law = {}
        for text in product(range(len(probs)), repeat=length):
            probability, last = 1.0, start
            for token in text:
                probability *= probs[last][token]
                last = token
            if probability > 0:
                law[text] = probability
        return law


class Trees:
    """A tree per request: by turns those of `trees`, each cut to some rows or whole."""

    def __init__(
        self, trees: tuple[TokenTree, ...], num_reqs: int, is_cut: bool = False
    ) -> None:
        self.num_reqs = num_reqs
        self.max_depth = max(tree.max_depth for tree in trees)
        self.max_children = [0] * self.max_depth
        width = 1 + max(tree.num_nodes for tree in trees)
        parents, depths, ordinals = [], [], []
        for tree in trees:
            padding = [0] * (width - tree.num_nodes - 1)
            ordinal = [0] * (tree.num_nodes + 1)
            for row, children in enumerate(tree.children):
                for place, child in enumerate(children):
                    ordinal[child] = place
                if children:
                    most = max(self.max_children[tree.depths[row]], len(children))
                    self.max_children[tree.depths[row]] = most
            parents.append([0, *tree.parents[1:], *padding])
            depths.append([*tree.depths, *padding])
            ordinals.append([*ordinal, *padding])
        turn = torch.arange(num_reqs) % len(trees)
        # [num_reqs, width] int64 each
        self.parents = torch.tensor(parents)[turn]
        self.depths = torch.tensor(depths)[turn]
        self.ordinals = torch.tensor(ordinals)[turn]
        # [num_reqs] int64
        self.num_rows = torch.tensor([tree.num_nodes + 1 for tree in trees])[turn]
        if is_cut:
            # Every number of rows from 1, the root alone, to all.
            self.num_rows = 1 + torch.arange(num_reqs) // len(trees) % self.num_rows


class Step(Protocol):
    """Verifies the trees of a step."""

    def __call__(
        self,
        toy: Toy,
        trees: Trees,
        # [num_reqs, width] int64
        tokens: torch.Tensor,
        # [num_reqs, num_heads, draft_vocab_size]
        draft_probs: torch.Tensor,
        # [num_reqs] int64 each
        seeds: torch.Tensor,
        positions: torch.Tensor,
    ) -> Verification: ...


Order = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


# [num_reqs, num_heads, count] int64
def in_order_of_draws(
    # [num_reqs, num_heads, draft_vocab_size] each
    draft_logits: torch.Tensor,
    exponentials: torch.Tensor,
) -> torch.Tensor:
    """Slots drawn without replacement, in the order of the draws."""
    return (draft_logits - exponentials.log()).argsort(dim=2, descending=True)


# [num_reqs, width] int64
def propose(
    toy: Toy,
    trees: Trees,
    # [num_reqs] int64 each
    roots: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    order: Order = in_order_of_draws,
) -> torch.Tensor:
    """Candidates: the child of ordinal o at depth d has the o-th draw of head d."""
    draft_logits = toy.draft_logits[roots]
    _, num_heads, size = draft_logits.shape
    exponentials = noise.exponential(
        noise.Stream.DRAFT,
        seeds[:, None, None],
        positions[:, None, None],
        torch.arange(num_heads)[:, None],
        torch.arange(size),
    )
    drawn = order(draft_logits, exponentials)
    if toy.draft_token_ids is not None:
        drawn = toy.draft_token_ids[drawn]
    # Where a node has more children than there are tokens to draw, the rest is empty.
    drawn = F.pad(drawn, (0, max(trees.max_children)), value=PLACEHOLDER)
    head = (trees.depths - 1).clamp(min=0)
    tokens = drawn[torch.arange(len(roots))[:, None], head, trees.ordinals]
    tokens[:, 0] = roots
    return tokens


# ([num_reqs, length] int64, tokens per step)
def generate(
    toy: Toy,
    trees: Trees,
    start: int,
    length: int,
    step: Step,
    order: Order = in_order_of_draws,
) -> tuple[torch.Tensor, float]:
    """Make text, step by step, until each request has `length` tokens."""
    num_reqs, most = trees.num_reqs, trees.max_depth + 1
    text = torch.full((num_reqs, length * most), PLACEHOLDER)
    roots = torch.full((num_reqs,), start)
    seeds = torch.arange(num_reqs)
    count = torch.zeros(num_reqs, dtype=torch.int64)
    for _ in range(length):
        tokens = propose(toy, trees, roots, seeds, count, order)
        result = step(toy, trees, tokens, toy.draft_probs[roots], seeds, count)
        text.scatter_(1, count[:, None] + torch.arange(most), result.tokens)
        roots = result.tokens.gather(1, result.num_accepted[:, None])[:, 0]
        count += result.num_accepted + 1
    return text[:, :length], count.sum().item() / (num_reqs * length)
