# SPDX-License-Identifier: Apache-2.0
"""Trees of requests side by side, as `vllm_medusa.verify` takes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_medusa.runner.v2.tree_state import TreeState


@dataclass(frozen=True, slots=True)
class PaddedTrees:
    """The trees of some requests whose rows lie one request after another.

    `rows` [num_reqs, width] int64 is where each tree row lies among them; padding is
    any row. `parents` and `depths` are [num_reqs, width] int64, `num_rows` [num_reqs]
    int64, `requests` [num_reqs] int64 the requests' places in the batch. `flat_parents`
    [number of rows] int64 is where each row's parent lies; a root's is itself.
    """

    rows: torch.Tensor
    parents: torch.Tensor
    depths: torch.Tensor
    num_rows: torch.Tensor
    requests: torch.Tensor
    flat_parents: torch.Tensor

    @classmethod
    def of(
        cls,
        state: TreeState,
        # [num_reqs] integer, places in the batch
        requests: npt.NDArray[np.integer],
        # [num_reqs] integer, rows of each
        num_rows: npt.NDArray[np.integer],
        # requests of the batch
        batch_size: int,
    ) -> PaddedTrees:
        """Pad the requests' trees to the rows of the largest one."""
        device = state.parents(1).device
        width, total = int(num_rows.max()), int(num_rows.sum())
        starts = num_rows.cumsum() - num_rows
        of_request = async_tensor_h2d(
            np.stack([requests, num_rows, starts]).astype(np.int64), device=device
        )
        requests_on_device, num_rows_on_device, starts_on_device = of_request
        if state.is_fixed:
            parents, depths = state.parents(len(requests)), state.depths(len(requests))
        else:
            parents = state.parents(batch_size)[requests_on_device]
            depths = state.depths(batch_size)[requests_on_device]
        parents, depths = parents[:, :width].long(), depths[:, :width].long()
        in_padded = np.arange(len(requests)) * width - starts
        # Where in the padded tensors each row stands.
        place = async_tensor_h2d(
            in_padded.repeat(num_rows) + np.arange(total), device=device
        )
        ids = torch.arange(width, device=device)
        return cls(
            rows=(starts_on_device[:, None] + ids).clamp_(max=total - 1),
            parents=parents,
            depths=depths,
            num_rows=num_rows_on_device,
            requests=requests_on_device,
            flat_parents=(starts_on_device[:, None] + parents).view(-1)[place],
        )
