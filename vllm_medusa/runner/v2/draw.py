# SPDX-License-Identifier: Apache-2.0
"""vLLM's own sampler, at every row of a step's trees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import get_max_chunk_logits

from vllm_medusa.runner.v2.path_windows import PathWindows, RowLayout, path_rows
from vllm_medusa.runner.v2.tree_state import TreeState

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    from vllm_medusa.tree import TokenTree

Ints = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class StepRows:
    """All rows of logits of a step, in the order of its requests and their trees.

    `logits` [num_rows, vocab_size], `tokens` [num_rows] int32 (the input tokens, -1 for
    a placeholder), `candidates` [num_rows] int32 (the same, -1 also for what may not be
    accepted), `positions` [num_rows] int64.
    """

    logits: torch.Tensor
    tokens: torch.Tensor
    candidates: torch.Tensor
    positions: torch.Tensor
    input_batch: InputBatch


@dataclass(frozen=True, slots=True)
class Chunk:
    """Requests of a step whose rows go through the sampler at once.

    `requests` [n] are their places in the batch, `num_rows` [n] the rows of each.
    `rows` are these rows among the step's: a slice, or [sum of num_rows] int64 on the
    device. `layout` is None where the sampler gets them as they are.
    """

    requests: Ints
    num_rows: Ints
    rows: slice | torch.Tensor
    layout: RowLayout | None


class RowSampler:
    """Draws at every row what plain decoding would draw there.

    Requests whose sampling parameters depend on the text before a row are laid out in
    windows (`PathWindows`); a step without such requests costs nothing more.
    """

    def __init__(
        self,
        sampler: Sampler,
        trees: TreeState,
        tree: TokenTree,
        # [max_num_reqs] bool by request state
        reads_path: npt.NDArray[np.bool_],
        device: torch.device,
    ) -> None:
        """`tree` is every request's tree, or bounds them; `reads_path` says whose
        parameters depend on the path, and its owner writes it."""
        self.sampler = sampler
        self._trees = trees
        self._reads_path = reads_path
        self._device = device
        self._windows = PathWindows(tree, device, is_fixed=self._trees.is_fixed)
        self._fixed_paths = None
        if self._trees.is_fixed:
            self._fixed_paths = self._paths(1)

    def chunks(
        self, step: StepRows, requests: Ints, num_copies: int = 1
    ) -> Iterator[Chunk]:
        """Cut `requests` (places in the batch, ascending) into chunks.

        A chunk is one request, or has so few rows that `num_copies` of its logits in
        float32 stay small; see `MAX_CHUNK_BYTES` of
        `vllm.v1.worker.gpu.spec_decode.rejection_sampler`.
        """
        batch = step.input_batch
        ends = batch.cu_num_logits_np
        num_rows = ends[requests + 1] - ends[requests]
        is_windowed = self._reads_path[batch.idx_mapping_np[requests]] & (num_rows > 1)
        if self._trees.is_chain:
            is_windowed[:] = False
        counts = self._windows.num_laid_out(num_rows, is_windowed)
        max_rows = get_max_chunk_logits(step.logits.shape[1]) // num_copies
        for part in _split(counts, max_rows):
            yield self._chunk(step, requests[part], num_rows[part], is_windowed[part])

    def _chunk(
        self,
        step: StepRows,
        requests: Ints,
        num_rows: Ints,
        is_windowed: npt.NDArray[np.bool_],
    ) -> Chunk:
        ends = step.input_batch.cu_num_logits_np
        first_rows = ends[requests]
        first, last = requests[0], requests[-1]
        is_run = last - first + 1 == len(requests)
        rows: slice | torch.Tensor
        if is_run:
            rows = slice(int(ends[first]), int(ends[last + 1]))
            if not is_windowed.any():
                return Chunk(requests, num_rows, rows, layout=None)
        else:
            rows = self._to_device(_ranges(first_rows, num_rows))
        num_reqs = step.input_batch.num_reqs
        paths, trees = self._fixed_paths, np.zeros_like(requests)
        if paths is None:
            paths, trees = self._paths(num_reqs), requests
        depths = self._trees.depths(1 if self._trees.is_fixed else num_reqs)
        layout = self._windows.lay_out(
            first_rows, num_rows, is_windowed, trees, paths, depths
        )
        return Chunk(requests, num_rows, rows, layout)

    # ([sum of num_rows] int64, [sum of num_rows, vocab_size] or None)
    def sample(
        self, step: StepRows, chunk: Chunk, *, return_logprobs: bool, keep: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw at a chunk's rows; return the draws and, if `keep`, the logits that
        they were drawn from (all of `Sampler.sample`)."""
        drawn, processed = self.sampler.sample(
            *self._arguments(step, chunk), return_logprobs=return_logprobs
        )
        drawn = drawn.view(-1)
        if chunk.layout is None:
            return drawn, processed if keep else None
        pick = chunk.layout.pick
        return drawn[pick], processed[pick] if keep else None

    # [sum of num_rows, vocab_size]
    def process(self, step: StepRows, chunk: Chunk) -> torch.Tensor:
        """Return the logits that plain decoding would draw from at a chunk's rows (all
        of `Sampler.apply_sampling_params`)."""
        processed: torch.Tensor = self.sampler.apply_sampling_params(
            *self._arguments(step, chunk)
        )
        return processed if chunk.layout is None else processed[chunk.layout.pick]

    def _arguments(self, step: StepRows, chunk: Chunk) -> tuple[Any, ...]:
        """Return what `Sampler.sample` and `apply_sampling_params` take."""
        batch, requests = step.input_batch, chunk.requests
        rows: slice | torch.Tensor
        if chunk.layout is None:
            rows = chunk.rows
            local_pos = batch.expanded_local_pos[rows]
        else:
            rows, local_pos = chunk.layout.source, chunk.layout.local_pos
        idx_mapping_np = batch.idx_mapping_np[requests]
        if len(requests) == batch.num_reqs:
            idx_mapping = batch.idx_mapping
        else:
            idx_mapping = self._to_device(idx_mapping_np)
        return (
            step.logits[rows],
            batch.expanded_idx_mapping[rows],
            idx_mapping,
            idx_mapping_np,
            step.positions[rows],
            step.tokens[rows],
            local_pos,
            batch.seq_lens_cpu_upper_bound.numpy()[requests],
        )

    def _paths(self, num_trees: int) -> torch.Tensor:
        trees = self._trees
        return path_rows(
            trees.parents(num_trees), trees.depths(num_trees), trees.max_depth
        )

    def _to_device(self, array: Ints) -> torch.Tensor:
        tensor: torch.Tensor = async_tensor_h2d(
            array.astype(np.int64), device=self._device
        )
        return tensor


def _split(counts: Ints, max_rows: int) -> Iterator[slice]:
    """Yield slices of `counts` that sum to at most `max_rows`, or hold one entry."""
    ends = np.concatenate([[0], counts.cumsum()])
    start = 0
    while start < len(counts):
        limit = int(ends[start]) + max_rows
        end = max(start + 1, int(ends.searchsorted(limit, side="right")) - 1)
        yield slice(start, end)
        start = end


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """Return the ranges [start, start + length), one after another."""
    before = lengths.cumsum() - lengths
    return (starts - before).repeat(lengths) + np.arange(int(lengths.sum()))
