# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of the model: one for every tree that a batch can have, and no other."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable

from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import (
    BatchExecutionDescriptor,
    ModelCudaGraphManager,
)

from vllm_medusa.runner.v2.reachable import nodes_by_batch_size, reachable_batch_sizes

Candidates = dict[tuple[int, int], list[BatchExecutionDescriptor]]
"""By (tokens of the batch, active LoRA adapters): the graphs to try, best first."""


class TreeGraphManager(ModelCudaGraphManager):
    """vLLM's graphs of the model, chosen by the batch-size table.

    vLLM captures uniform verification batches for every pair of a batch size and a
    number of drafts in the table: a 64-row tree at batch 256 too, though the table
    gives such a batch no nodes. And of graphs with different numbers of drafts it
    tries only those with the next larger number of tokens, which may all be of the
    wrong one; here each number of drafts has its own next larger graph.
    """

    def _init_candidates(self) -> None:
        super()._init_candidates()
        full = self._capture_descs.pop(CUDAGraphMode.FULL, [])
        kept = reachable_graphs(full, nodes_by_batch_size(self.vllm_config))
        if kept:
            self._capture_descs[CUDAGraphMode.FULL] = kept
        piecewise = self._capture_descs.get(CUDAGraphMode.PIECEWISE, [])
        self._candidates = cover(kept, cover(piecewise))


def reachable_graphs(
    descriptors: Iterable[BatchExecutionDescriptor], schedule: list[int]
) -> list[BatchExecutionDescriptor]:
    """Return the graphs without the uniform batches that never occur.

    `schedule` is `nodes_by_batch_size`.
    """
    descriptors = list(descriptors)
    uniform = defaultdict(set)
    for desc in descriptors:
        if desc.uniform_token_count is not None and desc.num_reqs is not None:
            uniform[desc.uniform_token_count].add(desc.num_reqs)
    reachable = {
        num_rows: reachable_batch_sizes(sizes, num_rows - 1, schedule)
        for num_rows, sizes in uniform.items()
    }
    return [
        desc
        for desc in descriptors
        if desc.uniform_token_count not in reachable
        or desc.num_reqs in reachable[desc.uniform_token_count]
    ]


def cover(
    descriptors: Iterable[BatchExecutionDescriptor],
    fallback: Candidates | None = None,
) -> Candidates:
    """Return for each number of tokens the smallest graph of each kind that holds it.

    Graphs differ in kind by their rows per request and LoRA case. Those of
    `fallback` are tried after.
    """
    kinds = defaultdict(list)
    for desc in descriptors:
        kinds[desc.uniform_token_count, desc.num_active_loras].append(desc)
    candidates: defaultdict[tuple[int, int], list[BatchExecutionDescriptor]]
    candidates = defaultdict(list)
    for (_, num_active_loras), graphs in kinds.items():
        graphs.sort(key=lambda desc: desc.num_tokens)
        sizes = [desc.num_tokens for desc in graphs]
        for num_tokens in range(sizes[-1] + 1):
            graph = graphs[bisect_left(sizes, num_tokens)]
            candidates[num_tokens, num_active_loras].append(graph)
    for key, graphs in (fallback or {}).items():
        candidates[key].extend(graphs)
    return dict(candidates)
