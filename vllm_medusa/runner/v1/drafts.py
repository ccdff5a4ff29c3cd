# SPDX-License-Identifier: Apache-2.0
"""What was proposed for each request, from its proposal to its verification."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from vllm_medusa.propose import Proposal


@dataclass(frozen=True, slots=True)
class Drafts:
    """What verification has to know of one request's drafts besides their tokens.

    `parents` [num_nodes + 1] int64: parent row of each row, the root's own entry is 0;
    None stands for the proposer's tree. `probs` [depth, draft_vocab] float32: as in
    `Proposal`. `are_placeholders`: nothing was proposed, and nothing may be accepted.
    """

    parents: torch.Tensor | None = None
    probs: torch.Tensor | None = None
    are_placeholders: bool = False


class KeptDrafts:
    """Drafts by request, until they are verified or given up.

    vLLM may schedule a request's drafts some steps after they were proposed, cut them,
    or drop them.
    """

    def __init__(self) -> None:
        self._drafts: dict[str, Drafts] = {}

    def __len__(self) -> int:
        return len(self._drafts)

    def keep(self, req_ids: Sequence[str], proposal: Proposal) -> None:
        """Keep what was proposed for `req_ids`, which are the proposal's requests."""
        parents, probs = proposal.parents, proposal.probs
        if parents is None and probs is None:
            return
        for index, req_id in enumerate(req_ids):
            self._drafts[req_id] = Drafts(
                None if parents is None else parents[index].long(),
                # A view would keep the whole batch's alive.
                None if probs is None else probs[index].clone(),
            )

    def take(self, req_ids: Sequence[str]) -> list[Drafts]:
        """Return the drafts of the requests of a step, which verifies or drops them."""
        return [self._drafts.pop(req_id, NO_DETAILS) for req_id in req_ids]

    def forget(self, req_ids: Collection[str]) -> None:
        """Drop the drafts of requests that have ended."""
        for req_id in req_ids:
            self._drafts.pop(req_id, None)


def without_placeholders(
    # of each tree
    drafts: Sequence[Drafts],
    first_tokens: Sequence[int],
) -> list[Drafts]:
    """Return the drafts of a step's trees, `NO_DRAFTS` where the tokens are negative.

    vLLM's scheduler pads a request that joins with one token to compute to the size of
    a tree. Drafts that it had before a preemption are not those that are verified.
    """
    return [
        NO_DRAFTS if token < 0 else own
        for own, token in zip(drafts, first_tokens, strict=True)
    ]


NO_DETAILS = Drafts()
"""The best tokens, in the proposer's tree."""

NO_DRAFTS = Drafts(are_placeholders=True)
"""Placeholders, in the proposer's tree."""
