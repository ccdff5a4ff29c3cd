# SPDX-License-Identifier: Apache-2.0
"""Exact acceptance: follow the target model's own draws."""

from __future__ import annotations

import torch

from vllm_medusa.verify.verification import (
    PLACEHOLDER,
    Verification,
    climb,
    nodes_in_use,
    with_ancestors,
)


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
    # A node is accepted if it and all its ancestors equal their parent's draw.
    agrees = (tokens == drawn.gather(1, parents)) & nodes_in_use(tokens, num_rows)
    accepted = with_ancestors(agrees, parents, max_depth)
    # Siblings hold different tokens, so accepted nodes form one path; should two
    # siblings be equal, argmax takes the first, and both are the same text.
    num_accepted, last = torch.where(accepted, depths, -1).max(dim=1)
    rows = climb(last, num_accepted, parents, max_depth)
    emitted = drawn.gather(1, rows)
    steps = torch.arange(max_depth + 1, device=tokens.device)
    emitted.masked_fill_(steps > num_accepted[:, None], PLACEHOLDER)
    return Verification(emitted, rows, num_accepted)
