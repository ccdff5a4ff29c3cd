# SPDX-License-Identifier: Apache-2.0
"""Recursive rejection sampling of candidates that were drawn without replacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_medusa import noise
from vllm_medusa.verify.verification import Verification, emit_path, nodes_in_use


def verify_rejection(
    # [num_reqs, num_rows] int64, the tree's tokens; column 0 is the root
    tokens: torch.Tensor,
    # [num_logits, vocab_size] float32, after all processing; -inf allowed
    logits: torch.Tensor,
    # [num_reqs, num_rows] int64, the row of `logits` of each tree row; padding: any
    rows: torch.Tensor,
    # [num_reqs, num_heads, draft_vocab_size] float32, what the candidates of each
    # depth were drawn from; zeros allowed
    draft_probs: torch.Tensor,
    # [draft_vocab_size] int64, distinct; None: the draft vocabulary is the whole one
    draft_token_ids: torch.Tensor | None,
    # [num_reqs, num_rows] int64, parent row of each row; the root's own entry is 0
    parents: torch.Tensor,
    # [num_reqs, num_rows] int64, depth of each row; the root's is 0
    depths: torch.Tensor,
    # [num_reqs] int64, rows in use; the ones after them are padding
    num_rows: torch.Tensor,
    # [num_reqs] int64, seeds of the requests
    seeds: torch.Tensor,
    # [num_reqs] int64, position of the root in the request's text
    positions: torch.Tensor,
    # for depths 0, 1, … the most children that a node of that depth has; at most
    # max_depth entries (a node deeper than that has none)
    max_children: Sequence[int],
    max_depth: int,
) -> Verification:
    """Try a node's children one after another; the text keeps the model's law.

    At a node with the target's distribution p, candidates drawn from q without
    replacement are tried in the order of their draws. Candidate x is accepted with
    probability min(1, p(x)/q(x)). Refused, it leaves p <- norm(max(p - q, 0)) and
    q <- q without x, renormalised, for the next one. If none is accepted, or there is
    none, the step's last token is drawn from what is left of p. Each of these steps
    emits a token of law p (RSD, arXiv 2402.14160, section 3 and theorem 1; the same
    loop as in Sequoia, arXiv 2402.12374, algorithm 2; with replacement it is SpecInfer,
    arXiv 2305.09781, section 4.3).

    That theorem wants each node's candidates to be fresh draws. Here there is one list
    of draws per head, and all nodes of a depth have its first tokens as children.
    Nothing is lost, because a step visits at most one node of a depth, and
    which one depends on the lists of the heads above and on coins, which tell nothing
    about this head's list: at the node visited, the list is a fresh draw from q.
    (Lists do depend on each other through hidden states, but p and q are given by
    then.) For the same reason the shape of the tree, the rows of a cut tree, and which
    tokens are negative must not depend on what was drawn.

    The order of the rows is that of the draws: the i-th child of a node in row order
    must be the i-th draw. A child that can't have been drawn (negative token, outside
    of the draft vocabulary, q = 0) ends the attempts at its parent. A token of
    probability 0 is never emitted, and where p is one-hot (temperature 0) the rule is
    `verify_exact`.

    An attempt costs a few passes over the draft vocabulary, since outside of it q = 0
    and p is only rescaled; a depth costs one softmax over the vocabulary.
    """
    candidates = _Candidates(tokens, parents, num_rows, draft_token_ids, logits)
    row = torch.zeros_like(num_rows)
    # What refusals at the node where a request stopped took from p, as a multiple of q.
    removed = torch.zeros_like(draft_probs[:, 0, 0])
    is_walking = torch.ones_like(num_rows, dtype=torch.bool)
    walked = [row]
    for depth, most in enumerate(max_children):
        if most == 0:
            break
        target = _Target.at(logits, rows.gather(1, row[:, None])[:, 0], draft_token_ids)
        coins = noise.uniform(
            noise.Stream.COIN,
            seeds[:, None],
            positions[:, None],
            depth,
            torch.arange(most, device=tokens.device),
        )
        child, refused = _try_children(
            *candidates.of(row, most), target, draft_probs[:, depth], coins
        )
        removed = torch.where(is_walking, refused, removed)
        is_walking = is_walking & (child > 0)
        # At a node where all candidates were refused nothing is left to try.
        removed = torch.where(is_walking, 0, removed)
        row = torch.where(is_walking, child, row)
        walked.append(row)
    walked += [row] * (max_depth + 1 - len(walked))
    num_accepted = depths.gather(1, row[:, None])[:, 0]
    last_draft = num_accepted.clamp(max=draft_probs.shape[1] - 1)
    bonus = _draw_rest(
        _Target.at(logits, rows.gather(1, row[:, None])[:, 0], draft_token_ids),
        draft_probs[torch.arange(len(row), device=row.device), last_draft],
        removed,
        draft_token_ids,
        noise.uniform(noise.Stream.RESIDUAL, seeds, positions, dtype=torch.float64),
    )
    return emit_path(tokens, bonus, torch.stack(walked, dim=1), num_accepted)


class _Candidates:
    """The children of tree rows, and where their tokens stand in the draft vocabulary."""

    def __init__(
        self,
        # all as of `verify_rejection`
        tokens: torch.Tensor,
        parents: torch.Tensor,
        num_rows: torch.Tensor,
        draft_token_ids: torch.Tensor | None,
        logits: torch.Tensor,
    ) -> None:
        self._parents = parents
        self._is_node = nodes_in_use(tokens, num_rows)
        # [num_reqs, num_rows], -1: none
        self._slots = tokens
        if draft_token_ids is not None:
            slot_of = draft_token_ids.new_full((logits.shape[1],), -1)
            ids = torch.arange(len(draft_token_ids), device=tokens.device)
            slot_of.index_copy_(0, draft_token_ids, ids)
            self._slots = torch.where(tokens < 0, -1, slot_of[tokens.clamp(min=0)])

    # ([num_reqs, most] int64, [num_reqs, most] int64)
    def of(
        self,
        # [num_reqs] int64
        row: torch.Tensor,
        most: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first `most` children of each row (0: none) and their slots
        in the draft vocabulary (-1: none)."""
        width = self._parents.shape[1]
        row_ids = torch.arange(width, device=row.device)
        is_child = (self._parents == row[:, None]) & self._is_node
        children = torch.where(is_child, row_ids, width).sort(dim=1).values[:, :most]
        children = torch.where(children < width, children, 0)
        slots = torch.where(children > 0, self._slots.gather(1, children), -1)
        return children, slots


@dataclass(frozen=True, slots=True)
class _Target:
    """The target's distribution at one row of each request, by vocabulary."""

    drafted: torch.Tensor
    """[num_reqs, draft_vocab_size] float32, p of the draft vocabulary."""
    others: torch.Tensor | None
    """[num_reqs, vocab_size] float32, p with zeros at the draft vocabulary; None if
    that is the whole vocabulary."""
    mass: torch.Tensor
    """[num_reqs, 1] float32, sum of `others`."""

    @classmethod
    def at(
        cls,
        # [num_logits, vocab_size] float32
        logits: torch.Tensor,
        # [num_reqs] int64
        rows: torch.Tensor,
        draft_token_ids: torch.Tensor | None,
    ) -> _Target:
        probs = logits.index_select(0, rows).softmax(dim=1)
        if draft_token_ids is None:
            return cls(probs, None, probs.new_zeros(len(probs), 1))
        drafted = probs.index_select(1, draft_token_ids)
        others = probs.index_fill_(1, draft_token_ids, 0)
        return cls(drafted, others, others.sum(dim=1, keepdim=True))


# ([num_reqs] int64, [num_reqs] float32)
def _try_children(
    # [num_reqs, most] int64, rows of the children, 0: none
    children: torch.Tensor,
    # [num_reqs, most] int64, their slots in the draft vocabulary, -1: none
    slots: torch.Tensor,
    target: _Target,
    # [num_reqs, draft_vocab_size] float32
    draft: torch.Tensor,
    # [num_reqs, most] float32
    coins: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the accepted child (0: none) and what the refusals took from p.

    After refusals of x_1, …, x_k the rest of p is, up to a factor, max(p - c_k q, 0)
    with the whole, original q: what was taken adds up, and at a refused token p is
    below c·q, so that it stays 0 though later q lack the token. Only c needs
    to be kept: c_k = c_{k-1} + s/m, with s = Σ max(p - c_{k-1} q, 0) the mass that was
    left of p and m that of q without x_1, …, x_{k-1}.
    """
    is_drawn = slots >= 0
    slots = slots.clamp(min=0)
    # [num_reqs, most] each
    p, q = target.drafted.gather(1, slots), draft.gather(1, slots)
    is_drawn = is_drawn & (q > 0)
    q = torch.where(is_drawn, q, 0)
    is_drawn = is_drawn.cumprod(dim=1) > 0
    # Masses by sums of what is left: 1 - q(x_1) would lose all digits of a sharp q.
    blank = torch.where(q > 0, 0, torch.inf)
    undrawn = draft.scatter_reduce(1, slots, blank, "amin").sum(dim=1, keepdim=True)
    draft_mass = undrawn + q.flip(1).cumsum(dim=1).flip(1)

    # [num_reqs, 1] each
    accepted = torch.zeros_like(children[:, :1])
    removed = torch.zeros_like(p[:, :1])
    mass = target.drafted.sum(dim=1, keepdim=True) + target.mass
    for i in range(children.shape[1]):
        one = slice(i, i + 1)
        if i > 0:
            rest = torch.addcmul(target.drafted, removed, draft, value=-1)
            mass = rest.clamp_(min=0).sum(dim=1, keepdim=True) + target.mass
        scale = mass / draft_mass[:, one]
        # coin < (p - c·q) / s : q / m
        is_accepted = (
            coins[:, one] * scale * q[:, one] < p[:, one] - removed * q[:, one]
        )
        is_tried = is_drawn[:, one] & (accepted == 0)
        accepted = torch.where(is_tried & is_accepted, children[:, one], accepted)
        removed = torch.where(is_tried & ~is_accepted, removed + scale, removed)
    return accepted[:, 0], removed[:, 0]


# [num_reqs] int64
def _draw_rest(
    target: _Target,
    # [num_reqs, draft_vocab_size] float32
    draft: torch.Tensor,
    # [num_reqs] float32
    removed: torch.Tensor,
    draft_token_ids: torch.Tensor | None,
    # [num_reqs] float64 in (0, 1)
    numbers: torch.Tensor,
) -> torch.Tensor:
    """Draw from max(p - removed·q, 0), by inversion."""
    rest = torch.addcmul(target.drafted, removed[:, None], draft, value=-1)
    rest = rest.clamp_(min=0)
    # Where p and q are equal up to rounding nothing may be left, after a refusal of
    # a probability as small: then p itself is as good.
    has_rest = rest.sum(dim=1, keepdim=True) + target.mass > 0
    weights = torch.where(has_rest, rest, target.drafted)
    if target.others is not None:
        assert draft_token_ids is not None
        weights = target.others.index_copy(1, draft_token_ids, weights)
    # In float32 the sums of a large vocabulary would round small weights away.
    sums = weights.cumsum(dim=1, dtype=torch.float64)
    limit = sums[:, -1:] * numbers.clamp(max=1 - 2.0**-40)[:, None]
    # The first token whose sum is above the limit; in a parallel sum, rounding may
    # lift it at a token of weight 0.
    is_above = (sums > limit) & (weights > 0)
    return is_above.to(torch.uint8).argmax(dim=1)
