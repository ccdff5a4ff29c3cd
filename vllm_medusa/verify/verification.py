# SPDX-License-Identifier: Apache-2.0
"""What a verified step emits, and the steps that all acceptance schemes share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PLACEHOLDER = -1
"""vLLM's mark of "no token here" in a step's output
(`PLACEHOLDER_TOKEN_ID` of `vllm.v1.sample.rejection_sampler`)."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What one step emits.

    `tokens` [num_reqs, max_depth + 1] int64 holds the accepted tokens, then the
    bonus token, then `PLACEHOLDER`. `rows` [num_reqs, max_depth + 1] int64 holds
    the tree rows that were walked: root, accepted nodes, then repeats of the last
    one. `num_accepted` [num_reqs] int64 counts accepted nodes, root excluded.
    """

    tokens: torch.Tensor
    rows: torch.Tensor
    num_accepted: torch.Tensor


# [num_reqs, num_rows] bool
def nodes_in_use(
    # [num_reqs, num_rows], any of the padded tensors
    padded: torch.Tensor,
    # [num_reqs] int64
    num_rows: torch.Tensor,
) -> torch.Tensor:
    """Return which rows are nodes: neither the root nor padding."""
    row_ids = torch.arange(padded.shape[1], device=padded.device)
    return (row_ids > 0) & (row_ids < num_rows[:, None])


# [num_reqs, num_rows] bool
def with_ancestors(
    # [num_reqs, num_rows] bool, nodes that are accepted if their parents are
    nodes: torch.Tensor,
    # [num_reqs, num_rows] int64
    parents: torch.Tensor,
    max_depth: int,
) -> torch.Tensor:
    """Return which rows are accepted: the root, and nodes whose ancestors all are."""
    accepted = nodes.clone()
    accepted[:, 0] = True
    for _ in range(max_depth - 1):
        accepted &= accepted.gather(1, parents)
    return accepted


# [num_reqs, max_depth + 1] int64
def climb(
    # [num_reqs] int64, the last accepted row
    last: torch.Tensor,
    # [num_reqs] int64, its depth
    num_accepted: torch.Tensor,
    # [num_reqs, num_rows] int64
    parents: torch.Tensor,
    max_depth: int,
) -> torch.Tensor:
    """Return the rows from the root to `last`, then repeats of it."""
    rows = last[:, None].expand(-1, max_depth + 1).clone()
    row = last
    for step in range(max_depth, 0, -1):
        parent = parents.gather(1, row[:, None])[:, 0]
        row = torch.where(num_accepted >= step, parent, row)
        rows[:, step - 1] = row
    return rows


def emit_path(
    # [num_reqs, num_rows] int64, the tree's tokens
    tokens: torch.Tensor,
    # [num_reqs] int64, the token after the accepted ones
    bonus: torch.Tensor,
    # [num_reqs, max_depth + 1] int64, as `climb` returns them
    rows: torch.Tensor,
    # [num_reqs] int64
    num_accepted: torch.Tensor,
) -> Verification:
    """Emit the tokens of the accepted nodes, then the bonus token."""
    steps = torch.arange(rows.shape[1], device=rows.device)
    # The token that step i emits is that of the node which step i + 1 reaches.
    following = torch.cat((rows[:, 1:], rows[:, -1:]), dim=1)
    emitted = tokens.gather(1, following)
    emitted = torch.where(steps == num_accepted[:, None], bonus[:, None], emitted)
    emitted.masked_fill_(steps > num_accepted[:, None], PLACEHOLDER)
    return Verification(emitted, rows, num_accepted)
