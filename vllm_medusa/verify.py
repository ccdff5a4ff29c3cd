# SPDX-License-Identifier: Apache-2.0
"""Acceptance: which path of a token tree agrees with the target model.

Pure PyTorch, batched over requests, fixed shapes, no host round trip.
"""

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

    @property
    def last_rows(self) -> torch.Tensor:
        """Row of the last accepted node (0: the root), [num_reqs] int64."""
        return self.rows[:, -1]


def verify_exact(
    # [num_reqs, num_rows] int64, the tree's tokens; column 0 is the root
    tokens: torch.Tensor,
    # [num_reqs, num_rows] int64, one draw from the target distribution per row
    drawn: torch.Tensor,
    # [num_reqs, num_rows] int64, parent row of each row; the root's own entry is 0
    parents: torch.Tensor,
    # [num_reqs, num_rows] int64, depth of each row; the root's is 0
    depths: torch.Tensor,
    # [num_reqs] int64, rows in use; the ones after them are padding
    num_rows: torch.Tensor,
    max_depth: int,
) -> Verification:
    """Walk from the root to the child that equals the draw, as long as one does.

    The emitted tokens are the draws at the walked rows, so their law is the target
    model's own whatever the candidates were (SpecInfer, arXiv 2305.09781, section
    4.3, "naive sampling"; optimal for a fixed set of candidates). A row's draw is
    used only if all draws above it led there, hence one draw per row is enough.
    """
    width = tokens.shape[1]
    row_ids = torch.arange(width, device=tokens.device)
    # A node is accepted if it and all its ancestors equal their parent's draw.
    accepted = (tokens == drawn.gather(1, parents)) & (row_ids < num_rows[:, None])
    accepted[:, 0] = True
    for _ in range(max_depth - 1):
        accepted &= accepted.gather(1, parents)
    # Siblings hold different tokens, so accepted nodes form one path; should two
    # siblings be equal, argmax takes the first, and both are the same text.
    num_accepted, last = torch.where(accepted, depths, -1).max(dim=1)

    # Climb from the last accepted row, filling the path from its end.
    steps = torch.arange(max_depth + 1, device=tokens.device)
    rows = last[:, None].expand(-1, max_depth + 1).clone()
    row = last
    for step in range(max_depth, 0, -1):
        parent = parents.gather(1, row[:, None])[:, 0]
        row = torch.where(num_accepted >= step, parent, row)
        rows[:, step - 1] = row
    emitted = drawn.gather(1, rows)
    emitted.masked_fill_(steps > num_accepted[:, None], PLACEHOLDER)
    return Verification(emitted, rows, num_accepted)
