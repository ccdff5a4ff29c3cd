# SPDX-License-Identifier: Apache-2.0
"""Verification of a step whose requests may have different acceptance schemes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from vllm_medusa.attention.tree_batch import TreeBatch
from vllm_medusa.heads import MedusaHeads
from vllm_medusa.runner.v1.drafts import Drafts
from vllm_medusa.runner.v1.request_traits import RequestTraits
from vllm_medusa.runner.v1.row_sampler import Draws
from vllm_medusa.verify import (
    PLACEHOLDER,
    Verification,
    row_statistics,
    verify_exact,
    verify_rejection,
    verify_typical,
)


class StepVerifier:
    """Verifies each tree of a step by its own request's scheme."""

    def __init__(
        self,
        trees: TreeBatch,
        # [num_trees, width] int64
        tokens: torch.Tensor,
        draws: Draws,
        # [num_trees, width] int64, the row of `draws` of each tree row
        rows: torch.Tensor,
        # [num_trees] each
        traits: Sequence[RequestTraits],
        drafts: Sequence[Drafts],
        heads: MedusaHeads,
        # By depth, of a node
        max_children: Sequence[int],
    ) -> None:
        self.trees = trees
        # A negative token is never accepted.
        are_placeholders = torch.tensor([own.are_placeholders for own in drafts])
        self.tokens = tokens.masked_fill(are_placeholders[:, None], PLACEHOLDER)
        self.draws = draws
        self.rows = rows
        self.traits = traits
        self.drafts = drafts
        self.heads = heads
        self.max_children = max_children

    def verify(self) -> Verification:
        """Return what every tree emits."""
        result = self._exact()
        for scheme, verify in (
            ("typical", self._typical),
            ("rejection", self._rejection),
        ):
            which = [
                index
                for index, traits in enumerate(self.traits)
                if traits.acceptance.scheme == scheme
            ]
            if which:
                own = verify(which)
                result.tokens[which] = own.tokens
                result.rows[which] = own.rows
                result.num_accepted[which] = own.num_accepted
        return result

    def _exact(self) -> Verification:
        trees = self.trees
        return verify_exact(
            self.tokens,
            self.draws.tokens[self.rows],
            trees.parents(),
            trees.depths(),
            trees.num_rows,
            trees.layout.max_depth,
        )

    def _typical(self, which: list[int]) -> Verification:
        trees, target = self.trees, self.draws.target
        assert target is not None
        # [num, width] each
        rows, tokens, parents = (
            values[which] for values in (self.rows, self.tokens, trees.parents())
        )
        width = trees.width
        # The rows of the trees in question lie one tree after another.
        starts = torch.arange(len(which))[:, None] * width
        # [num * width, vocab_size]
        own = target[rows.flatten()]
        statistics = row_statistics(own, tokens.flatten(), (parents + starts).flatten())
        settings = [self.traits[index].acceptance for index in which]
        drawn = self.draws.tokens[rows]
        takes_best = torch.tensor([s.first_token == "greedy" for s in settings])
        if takes_best.any():
            best = own.argmax(dim=-1).view_as(drawn)
            drawn = torch.where(takes_best[:, None], best, drawn)
        return verify_typical(
            tokens,
            drawn,
            statistics.logprobs.view(-1, width),
            statistics.entropies.view(-1, width),
            parents,
            trees.depths()[which],
            trees.num_rows[which],
            torch.tensor([s.epsilon for s in settings]),
            torch.tensor([math.inf if s.delta is None else s.delta for s in settings]),
            trees.layout.max_depth,
        )

    def _rejection(self, which: list[int]) -> Verification:
        trees, target = self.trees, self.draws.target
        assert target is not None
        nothing = torch.zeros(1, self.heads.vocab_size)
        own = [self.drafts[index].probs for index in which]
        # Requests may have had their drafts proposed in steps of other depths.
        probs = pad_sequence(
            [nothing if p is None else p for p in own], batch_first=True
        )
        return verify_rejection(
            self.tokens[which],
            target,
            self.rows[which],
            probs,
            self.heads.draft_token_ids,
            trees.parents()[which],
            trees.depths()[which],
            trees.num_rows[which],
            torch.tensor([self.traits[index].seed for index in which]),
            trees.bases[which],
            # Other requests' trees may be deeper.
            self.max_children[: probs.shape[1]],
            trees.layout.max_depth,
        )
