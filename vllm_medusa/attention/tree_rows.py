# SPDX-License-Identifier: Apache-2.0
"""The tree rows of one step as a device sees them: no number of them is on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TreeRows:
    """The leading requests of a step's batch, each with the rows of one tree.

    Model Runner V2 sorts the requests that verify drafts to the front, so their rows
    are the first `num_tokens` of the step. Rows of request i are
    `query_start_loc[i] .. query_start_loc[i + 1]`; row r of a request (0: the root)
    has position `base + depths[i, r]` and its key in the slot of position
    `base + r`, where `base = seq_lens[i] - (number of its rows)`. It sees the keys of
    positions below `base` and those of the rows r' with `ancestors[i, r, r']`.

    Requests may have fewer rows than `width`: their tree is cut. A request of the
    padding that full CUDA graphs need has no rows and `seq_lens` 0.
    """

    num_reqs: int
    """Requests, those of padding included."""
    num_tokens: int
    """Rows of all of them, padding included."""
    width: int
    """Rows of the widest request."""
    max_seq_len: int
    """Upper bound of `seq_lens`, known on the host."""
    is_whole_step: bool
    """Whether the step has no other rows."""
    query_start_loc: torch.Tensor
    """[num_reqs + 1] int32."""
    seq_lens: torch.Tensor
    """[num_reqs] int32, base + rows."""
    depths: torch.Tensor
    """[num_reqs, max_width] int32; of stride 0 over requests if all trees are equal."""
    ancestors: torch.Tensor
    """[num_reqs, max_width, max_width] bool, strides as `depths`."""
