# SPDX-License-Identifier: Apache-2.0
"""Typical acceptance: keep every candidate that the target model finds plausible."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_medusa.verify.verification import (
    Verification,
    climb,
    emit_path,
    nodes_in_use,
    with_ancestors,
)

# exp of it is 0 in float32, and 0 times it is 0, which 0 times -inf is not.
_LOG_OF_ZERO = -200.0


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """What typical acceptance looks at, per tree row."""

    logprobs: torch.Tensor
    """[num_rows] float32: log probability of the row's token at its parent; -inf for
    a probability of 0 and for a negative token. A root's means nothing."""
    entropies: torch.Tensor
    """[num_rows] float32: entropy in nats of the distribution at the row."""


def row_statistics(
    # [num_rows, vocab_size], any float type, after all processing; -inf allowed
    logits: torch.Tensor,
    # [num_rows] int64, the token of each row; negative: none
    tokens: torch.Tensor,
    # [num_rows] int64, index into `logits` of each row's parent; a root's is itself
    parents: torch.Tensor,
) -> RowStatistics:
    """Return the probability of each row's token and the entropy at each row.

    Computed in float32 with two passes over a copy of the logits. Rows of one request
    must come together; how the requests' trees lie in `logits` is all the same.
    """
    top = logits.amax(dim=1, keepdim=True).float()
    # [num_rows, vocab_size]: log weights, the largest of each row 0
    scores = (logits - top).clamp_(min=_LOG_OF_ZERO)
    weights = scores.exp()
    total = weights.sum(dim=1)
    # H = -Σ p log p with p = w / Σw and log p = log w - log Σw
    log_total = total.log()
    entropies = log_total - torch.linalg.vecdot(weights, scores) / total
    of_token = logits[parents, tokens.clamp(min=0)].float()
    logprobs = of_token - (top[:, 0] + log_total)[parents]
    return RowStatistics(logprobs.masked_fill_(tokens < 0, -torch.inf), entropies)


def verify_typical(
    # [num_reqs, num_rows] int64, the tree's tokens; column 0 is the root
    tokens: torch.Tensor,
    # [num_reqs, num_rows] int64, the token to emit after each row, should it be the
    # last: a draw from the target distribution, or its most probable token
    drawn: torch.Tensor,
    # [num_reqs, num_rows] float32, see `RowStatistics`
    logprobs: torch.Tensor,
    # [num_reqs, num_rows] float32, see `RowStatistics`
    entropies: torch.Tensor,
    # [num_reqs, num_rows] int64, parent row of each row; the root's own entry is 0
    parents: torch.Tensor,
    # [num_reqs, num_rows] int64, depth of each row; the root's is 0
    depths: torch.Tensor,
    # [num_reqs] int64, rows in use; the ones after them are padding
    num_rows: torch.Tensor,
    # [num_reqs] float32, the threshold in any case
    epsilon: torch.Tensor,
    # [num_reqs] float32, scale of the threshold that falls with entropy; inf: unset
    delta: torch.Tensor,
    max_depth: int,
) -> Verification:
    """Keep the longest path of candidates that are probable enough.

    A node is accepted if its parent is and p(token) > min(epsilon, delta·exp(-H)),
    p and H being the target model's distribution at the parent and its entropy
    (Medusa, arXiv 2401.10774, section 2.3.1). Of the longest accepted paths the one
    with the largest sum of log p is kept; of equal ones, that of the earliest last
    row. Without delta it is a plain threshold, p > epsilon.

    Lossy: accepted tokens are the heads' choice among plausible ones, not draws from
    the model. A node whose token has probability 0, or is negative, is never
    accepted, and where p is one-hot (temperature 0) and epsilon and delta lie in
    (0, 1) the rule is `verify_exact`.
    """
    threshold = torch.minimum(
        epsilon.log()[:, None], delta.log()[:, None] - entropies
    ).gather(1, parents)
    # A comparison with NaN, of a row that has no distribution, is False.
    plausible = (logprobs > threshold) & (logprobs > -torch.inf) & (tokens >= 0)
    accepted = with_ancestors(
        plausible & nodes_in_use(tokens, num_rows), parents, max_depth
    )
    # Sums over paths; the root adds nothing, however often it is visited.
    own = logprobs.clone()
    own[:, 0] = 0
    of_path, ancestors = own, parents
    for _ in range(max_depth - 1):
        of_path = of_path + own.gather(1, ancestors)
        ancestors = ancestors.gather(1, parents)
    reached = torch.where(accepted, depths, -1)
    num_accepted = reached.amax(dim=1)
    is_longest = reached == num_accepted[:, None]
    # argmax takes the first of equal ones.
    last = torch.where(is_longest, of_path, -torch.inf).argmax(dim=1)
    rows = climb(last, num_accepted, parents, max_depth)
    bonus = drawn.gather(1, last[:, None])[:, 0]
    return emit_path(tokens, bonus, rows, num_accepted)
