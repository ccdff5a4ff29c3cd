# SPDX-License-Identifier: Apache-2.0
"""Tree rows laid out as chains, for what reads a row's path in the rows before it.

vLLM's sampler takes a request's rows for a chain of drafts: its penalties, bad words
and thinking budget find the tokens before a row in the `expanded_local_pos` rows
before it (`vllm.v1.worker.gpu.sample.logits_processor.interface.LogitsContext`). In a
tree a row's path is scattered among its siblings'. So the sampler is given windows: a
path from the root down, row after row, each with the logits of its tree row. Rows that
paths share are repeated, and each tree row picks its result from one window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_medusa.tree import TokenTree

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HostWindows:
    """What the host knows of the windows of a tree with a certain number of rows.

    Of each laid-out row: `ends` the last row of the path that it is of, `steps` where
    on that path it lies, `local_pos` how many rows before it are of its window, each
    [num_laid_out] int64. `starts` [num_rows] int64 is where the window begins in which
    each tree row, as far behind as it is deep, picks its result.
    """

    ends: Ints
    steps: Ints
    local_pos: Ints
    starts: Ints


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Rows as vLLM's sampler gets them, on the device.

    `source` [num_laid_out] int64 is the row of the step that each one repeats,
    `local_pos` [num_laid_out] int32 how many rows before it are its path. `pick`
    [num_rows] int64 is the laid-out row of each row of the requests, in their order.
    """

    source: torch.Tensor
    local_pos: torch.Tensor
    pick: torch.Tensor


# [num_trees, num_rows, max_depth + 1] int64
def path_rows(
    # [num_trees, num_rows] integer, parent row of each row, 0 for the root itself
    parents: torch.Tensor,
    # [num_trees, num_rows] integer
    depths: torch.Tensor,
    max_depth: int,
) -> torch.Tensor:
    """Return the path of each row, from the root down, then repeats of the row."""
    parents = parents.long()
    row = torch.arange(parents.shape[1], device=parents.device).expand(parents.shape)
    paths = [row]
    for depth in range(max_depth, 0, -1):
        row = torch.where(depths >= depth, parents.gather(1, row), row)
        paths.append(row)
    return torch.stack(paths[::-1], dim=-1)


def leaf_windows(tree: TokenTree) -> HostWindows:
    """Return one window per leaf of a tree that the host knows."""
    starts = np.zeros(tree.num_nodes + 1, dtype=np.int64)
    ends, steps = list[int](), list[int]()
    for leaf in tree.leaves:
        row = leaf
        while row >= 0:
            starts[row] = len(ends)
            row = tree.parents[row]
        length = tree.depths[leaf] + 1
        ends.extend([leaf] * length)
        steps.extend(range(length))
    on_path = np.array(steps)
    return HostWindows(np.array(ends), on_path, on_path, starts)


def row_windows(num_rows: int, max_depth: int) -> HostWindows:
    """Return one window per row, for a tree of which only the device knows the shape.

    Each is as long as the deepest path. What is beyond a row's depth repeats the row
    and is never picked.
    """
    rows, length = np.arange(num_rows), max_depth + 1
    steps = np.tile(np.arange(length), num_rows)
    return HostWindows(rows.repeat(length), steps, steps, rows * length)


def unchanged(num_rows: int, max_depth: int) -> HostWindows:
    """Return rows that stay as they are; each picks its own result."""
    rows = np.arange(num_rows)
    # The last entry of a row's path is the row.
    return HostWindows(rows, np.full_like(rows, max_depth), rows, rows)


class PathWindows:
    """Lays a step's trees out, on the device and without waiting for it.

    The number of rows of each request is known on the host. Of a fixed tree its leaves
    are, too; trees that differ by request get a window for each row.
    """

    def __init__(
        self, tree: TokenTree, device: torch.device, *, is_fixed: bool = True
    ) -> None:
        """`tree` is every request's tree, or bounds them if `is_fixed` is False."""
        self._device = device
        max_depth = tree.max_depth

        def windows(num_rows: int, is_windowed: bool) -> HostWindows:
            if not is_windowed:
                return unchanged(num_rows, max_depth)
            if is_fixed:
                return leaf_windows(tree.truncate(num_rows - 1))
            return row_windows(num_rows, max_depth)

        self._windows: Callable[[int, bool], HostWindows] = cache(windows)

    # [num_reqs] int64
    def num_laid_out(
        self,
        # [num_reqs] integer, rows of each request
        num_rows: npt.NDArray[np.integer],
        # [num_reqs] bool, whose rows become windows
        is_windowed: npt.NDArray[np.bool_],
    ) -> Ints:
        """Return how many rows `lay_out` makes of each request's."""
        counts = num_rows.astype(np.int64)
        for request in is_windowed.nonzero()[0]:
            counts[request] = len(self._windows(int(num_rows[request]), True).ends)
        return counts

    def lay_out(
        self,
        # [num_reqs] integer, the first row of each request among those of the step
        first_rows: npt.NDArray[np.integer],
        # [num_reqs] integer, rows of each request; more than one if it is windowed
        num_rows: npt.NDArray[np.integer],
        # [num_reqs] bool, whose rows become windows; the others' stay as they are
        is_windowed: npt.NDArray[np.bool_],
        # [num_reqs] integer, which of `paths` is the request's tree
        trees: npt.NDArray[np.integer],
        # [num_trees, max_rows, max_depth + 1] int64, of `path_rows`
        paths: torch.Tensor,
        # [num_trees, max_rows] integer
        depths: torch.Tensor,
    ) -> RowLayout:
        """Lay the rows of some of a step's requests out, one request after another."""
        parts = [
            self._windows(count, windowed)
            for count, windowed in zip(
                num_rows.tolist(), is_windowed.tolist(), strict=True
            )
        ]
        counts = np.array([len(part.ends) for part in parts])
        first_laid_out = counts.cumsum() - counts
        width, length = paths.shape[1:]
        ends = np.concatenate([part.ends for part in parts])
        steps = np.concatenate([part.steps for part in parts])
        of_laid_out = self._to_device(
            ((trees * width).repeat(counts) + ends) * length + steps,
            first_rows.repeat(counts),
            np.concatenate([part.local_pos for part in parts]),
        )
        starts = np.concatenate([part.starts for part in parts])
        rows = np.concatenate([np.arange(count) for count in num_rows])
        of_rows = self._to_device(
            starts + first_laid_out.repeat(num_rows),
            rows + (trees * width).repeat(num_rows),
            is_windowed.repeat(num_rows),
        )
        return RowLayout(
            source=paths.reshape(-1)[of_laid_out[0]] + of_laid_out[1],
            local_pos=of_laid_out[2].int(),
            pick=of_rows[0] + depths.reshape(-1)[of_rows[1]] * of_rows[2],
        )

    # [len(columns), number of entries] int64
    def _to_device(self, *columns: npt.NDArray[Any]) -> torch.Tensor:
        """Copy arrays of equal length in one piece."""
        tensor: torch.Tensor = async_tensor_h2d(
            np.stack([column.astype(np.int64) for column in columns]),
            device=self._device,
        )
        return tensor
