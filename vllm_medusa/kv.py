# SPDX-License-Identifier: Apache-2.0
"""Commit an accepted path: its rows' keys and values move behind the prefix.

A tree row r writes its key and value to the slot of position base + r. If the row
is accepted at depth d, the next step expects them at position base + d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from vllm_medusa.verify import Verification


class RowStore(Protocol):
    """The KV cache of some layers that share one block table."""

    @property
    def block_size(self) -> int:
        """Tokens per block."""

    def move(
        self,
        # [num_moves] int64 each: block and offset inside the block
        source_block: torch.Tensor,
        source_offset: torch.Tensor,
        target_block: torch.Tensor,
        target_offset: torch.Tensor,
    ) -> None:
        """Copy rows between slots, in every layer, as if all at once."""


@dataclass(frozen=True, slots=True)
class RowMoves:
    """Accepted rows that do not lie where the next step looks for them.

    All [num_moves] int64: index of the tree request in the batch given to
    `plan_moves`, position of the row's slot, and position it has to be at.
    """

    request: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor


def plan_moves(
    verification: Verification,
    # [num_reqs] int64, position of each root
    bases: torch.Tensor,
) -> RowMoves | None:
    """Return the rows to move, or None if every accepted row lies in place.

    That is so for a chain, whose row r has depth r, and for a path along the
    best-ranked nodes that happens to be numbered 1, 2, 3, ….
    """
    rows = verification.rows
    depth = torch.arange(rows.shape[1], device=rows.device)
    displaced = (rows != depth) & (depth <= verification.num_accepted[:, None])
    if not displaced.any():
        return None
    request, depth = displaced.nonzero(as_tuple=True)
    base = bases[request]
    return RowMoves(request, base + rows[request, depth], base + depth)


def move_rows(
    moves: RowMoves,
    store: RowStore,
    # [num_reqs, max_blocks] int32 or int64, block ids of each tree request
    block_table: torch.Tensor,
) -> None:
    """Apply `moves` to the layers of one KV cache group."""
    size = store.block_size
    source_block = block_table[moves.request, moves.source // size].long()
    target_block = block_table[moves.request, moves.target // size].long()
    store.move(source_block, moves.source % size, target_block, moves.target % size)
