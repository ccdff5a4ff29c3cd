# SPDX-License-Identifier: Apache-2.0
"""Recursive rejection sampling of candidates that were drawn without replacement."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_medusa import noise
from vllm_medusa.verify.inversion import draw
from vllm_medusa.verify.verification import Verification, emit_path, nodes_in_use

# What is left of q is too small for float32 below it: at low temperatures all but
# the first candidate may come from digits that underflowed.
_LEAST_MASS = 1e-30


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
    Nothing is lost: a step looks at the children of at most one node of a depth, and
    which one that is depends on the lists of the heads above and on coins. Given p and
    q, those are independent of this head's list, which at the node visited thus still
    is a fresh draw from q. (That candidates of siblings' children coincide makes the
    subtrees dependent on each other, but only one of them is entered.) For the same
    reason the shape of the tree, the number of rows that it is cut to, and which
    tokens are negative must not depend on what was drawn.

    The order of the rows is that of the draws: the i-th child of a node in row order
    must be the i-th draw. A child that can't have been drawn (negative token, outside
    of the draft vocabulary, q = 0) ends the attempts at its parent, and so does a q of
    which only underflow is left (known before the next draw, hence lossless). A token
    of probability 0 is never emitted, and where p is one-hot (temperature 0) the rule
    is `verify_exact`.

    An attempt costs a few passes over the draft vocabulary, since outside of it q = 0
    and p is only rescaled; a depth costs one softmax over the vocabulary.
    """
    device = tokens.device
    slots = _draft_slots(tokens, draft_token_ids, logits.shape[1])
    is_node = nodes_in_use(tokens, num_rows)
    coins = noise.uniform(
        noise.Stream.COIN,
        seeds[:, None, None],
        positions[:, None, None],
        torch.arange(len(max_children), device=device)[:, None],
        torch.arange(max(max_children, default=0), device=device),
    )
    row = torch.zeros_like(num_rows)
    is_walking = torch.ones_like(num_rows, dtype=torch.bool)
    # What refusals took from p at the row where the walk ends, as a multiple of q.
    removed = logits.new_zeros(len(row))
    walked = [row]
    for depth, most in enumerate(max_children):
        if most == 0:
            break
        probs = _target_at(row, logits, rows)
        children = _children(row, parents, is_node, most)
        child, refused = _try_children(
            children,
            torch.where(children > 0, slots.gather(1, children), -1),
            _of_drafts(probs, draft_token_ids),
            draft_probs[:, depth],
            coins[:, depth, : children.shape[1]],
        )
        removed = torch.where(is_walking & (child == 0), refused, removed)
        is_walking = is_walking & (child > 0)
        row = torch.where(is_walking, child, row)
        walked.append(row)
    walked += [row] * (max_depth + 1 - len(walked))
    num_accepted = depths.gather(1, row[:, None])[:, 0]
    # At the deepest rows nothing was tried, and any q will do.
    head = num_accepted.clamp(max=draft_probs.shape[1] - 1)
    bonus = _draw_rest(
        _target_at(row, logits, rows),
        draft_probs[torch.arange(len(row), device=device), head],
        removed,
        draft_token_ids,
        noise.uniform(noise.Stream.RESIDUAL, seeds, positions, dtype=torch.float64),
    )
    return emit_path(tokens, bonus, torch.stack(walked, dim=1), num_accepted)


# [num_reqs, num_rows] int64
def _draft_slots(
    # [num_reqs, num_rows] int64
    tokens: torch.Tensor,
    # [draft_vocab_size] int64 or None
    draft_token_ids: torch.Tensor | None,
    vocab_size: int,
) -> torch.Tensor:
    """Return where tokens stand in the draft vocabulary, -1: nowhere."""
    if draft_token_ids is None:
        return tokens
    slot_of = draft_token_ids.new_full((vocab_size,), -1)
    slots = torch.arange(len(draft_token_ids), device=tokens.device)
    slot_of.index_copy_(0, draft_token_ids, slots)
    return torch.where(tokens < 0, -1, slot_of[tokens.clamp(min=0)])


# [num_reqs, most] int64
def _children(
    # [num_reqs] int64
    row: torch.Tensor,
    # [num_reqs, num_rows] int64
    parents: torch.Tensor,
    # [num_reqs, num_rows] bool
    is_node: torch.Tensor,
    most: int,
) -> torch.Tensor:
    """Return the first `most` children of each row, in row order; 0: no more."""
    width = parents.shape[1]
    row_ids = torch.arange(width, device=row.device)
    is_child = (parents == row[:, None]) & is_node
    children = torch.where(is_child, row_ids, width).sort(dim=1).values[:, :most]
    return torch.where(children < width, children, 0)


# [num_reqs, vocab_size] float32
def _target_at(
    # [num_reqs] int64, tree rows
    row: torch.Tensor,
    # [num_logits, vocab_size] float32
    logits: torch.Tensor,
    # [num_reqs, num_rows] int64
    rows: torch.Tensor,
) -> torch.Tensor:
    """Return the target's distribution at one row of each request."""
    return logits.index_select(0, rows.gather(1, row[:, None])[:, 0]).softmax(dim=1)


# [num_reqs, draft_vocab_size] float32
def _of_drafts(
    # [num_reqs, vocab_size] float32
    probs: torch.Tensor,
    # [draft_vocab_size] int64 or None
    draft_token_ids: torch.Tensor | None,
) -> torch.Tensor:
    """Return the columns of the draft vocabulary."""
    if draft_token_ids is None:
        return probs
    return probs.index_select(1, draft_token_ids)


# ([num_reqs] int64, [num_reqs] float32)
def _try_children(
    # [num_reqs, most] int64, rows of the children, 0: none
    children: torch.Tensor,
    # [num_reqs, most] int64, their slots in the draft vocabulary, -1: none
    slots: torch.Tensor,
    # [num_reqs, draft_vocab_size] float32, p of the draft vocabulary
    target: torch.Tensor,
    # [num_reqs, draft_vocab_size] float32, q
    draft: torch.Tensor,
    # [num_reqs, most] float32, uniform
    coins: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the accepted child (0: none), and what refusals of all took from p.

    After refusals of x_1, …, x_k the rest of p is, up to a factor, max(p - c_k q, 0)
    with the whole, original q: what was taken adds up, and at a refused token p was
    below c·q, so that it stays 0 though later q lack the token. Only c needs
    to be kept: c_k = c_{k-1} + s/m, with s = Σ max(p - c_{k-1} q, 0) the mass that was
    left of p and m that of q without x_1, …, x_{k-1}.
    """
    is_drawn = slots >= 0
    slots = slots.clamp(min=0)
    # [num_reqs, most] each
    q = draft.gather(1, slots)
    is_drawn = is_drawn & (q > 0)
    q = torch.where(is_drawn, q, 0)
    # Masses by sums of what is left: 1 - q(x_1) would lose the digits of a sharp q.
    blank = torch.full_like(q, torch.inf).masked_fill_(is_drawn, 0)
    never_drawn = draft.scatter_reduce(1, slots, blank, "amin").sum(1, keepdim=True)
    draft_mass = never_drawn + q.flip(1).cumsum(1).flip(1)
    is_drawn = (is_drawn & (draft_mass > _LEAST_MASS)).cumprod(1) > 0

    # [num_reqs, draft_vocab_size] and [num_reqs, 1]: what is left of p, and its mass
    rest, mass = target, torch.ones_like(never_drawn)
    outside = (1 - target.sum(1, keepdim=True)).clamp_(min=0)
    # c as if all were refused: whether one is accepted changes nothing before it.
    removed = [torch.zeros_like(mass)]
    left, taken = [], []
    for i in range(children.shape[1]):
        if i > 0:
            rest = torch.addcmul(target, removed[i], draft, value=-1).relu_()
            mass = rest.sum(1, keepdim=True) + outside
        left.append(rest.gather(1, slots[:, i : i + 1]))
        taken.append(mass / draft_mass[:, i : i + 1])
        removed.append(removed[i] + taken[i])
    # coin < (p/mass) / (q/draft_mass)
    is_accepted = is_drawn & (coins * torch.cat(taken, 1) * q < torch.cat(left, 1))
    first = is_accepted.to(torch.uint8).argmax(1, keepdim=True)
    accepted = torch.where(is_accepted, children, 0).gather(1, first)
    refused = torch.cat(removed, 1).gather(1, is_drawn.sum(1, keepdim=True))
    return accepted[:, 0], refused[:, 0]


# [num_reqs] int64
def _draw_rest(
    # [num_reqs, vocab_size] float32, p; overwritten
    target: torch.Tensor,
    # [num_reqs, draft_vocab_size] float32, q
    draft: torch.Tensor,
    # [num_reqs] float32
    removed: torch.Tensor,
    # [draft_vocab_size] int64 or None
    draft_token_ids: torch.Tensor | None,
    # [num_reqs] float64 in (0, 1)
    numbers: torch.Tensor,
) -> torch.Tensor:
    """Draw from max(p - removed·q, 0), not normalised."""
    ids = draft_token_ids
    p = _of_drafts(target, ids)
    rest = torch.addcmul(p, removed[:, None], draft, value=-1).relu_()
    weights = rest if ids is None else target.index_copy_(1, ids, rest)
    drawn = draw(weights, numbers)
    # If nothing is left, p = q up to rounding, and the refusal was as improbable; all
    # of p is in the draft vocabulary then.
    best = p.argmax(dim=1)
    best = best if ids is None else ids[best]
    return torch.where(weights.gather(1, drawn[:, None])[:, 0] > 0, drawn, best)
