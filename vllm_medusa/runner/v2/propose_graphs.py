# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of the heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import (
    BatchExecutionDescriptor,
    CudaGraphManager,
)

from vllm_medusa.runner.v2.model_graphs import cover
from vllm_medusa.runner.v2.reachable import nodes_by_batch_size, reachable_batch_sizes

if TYPE_CHECKING:
    from vllm.config import VllmConfig

RunHeads = Callable[[int, int], None]
"""(num_reqs, num_nodes): from the buffer of hidden states to that of drafts."""


class _BatchGraphs(CudaGraphManager):
    """Graphs of the heads for one number of nodes, by batch size."""

    def __init__(
        self, vllm_config: VllmConfig, device: torch.device, num_nodes: int
    ) -> None:
        self.num_nodes = num_nodes
        # One hidden state per request: a decode of one token, as vLLM counts.
        super().__init__(
            vllm_config, device, CUDAGraphMode.FULL_DECODE_ONLY, decode_query_len=1
        )

    def _init_candidates(self) -> None:
        super()._init_candidates()
        descriptors = self._capture_descs.get(CUDAGraphMode.FULL, [])
        reachable = reachable_batch_sizes(
            (desc.num_tokens for desc in descriptors),
            self.num_nodes,
            nodes_by_batch_size(self.vllm_config),
        )
        kept = [desc for desc in descriptors if desc.num_tokens in reachable]
        self._capture_descs.clear()
        if kept:
            self._capture_descs[CUDAGraphMode.FULL] = kept
        self._candidates = cover(kept)


class ProposeGraphs:
    """Graphs of the heads for every number of nodes that the table can choose."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        node_counts = set(nodes_by_batch_size(vllm_config)[1:]) - {0}
        self._graphs = {
            num_nodes: _BatchGraphs(vllm_config, device, num_nodes)
            for num_nodes in sorted(node_counts)
        }

    def capture(self, run_heads: RunHeads) -> None:
        """Capture `run_heads` for every reachable pair of batch size and nodes."""
        for num_nodes, graphs in self._graphs.items():

            def create_forward(
                desc: BatchExecutionDescriptor, warmup: bool, num_nodes: int = num_nodes
            ) -> Callable[[CUDAGraphMode], None]:
                return lambda mode: run_heads(desc.num_tokens, num_nodes)

            graphs.capture(create_forward, f"Capturing Medusa heads, {num_nodes} nodes")

    def replay(self, num_reqs: int, num_nodes: int) -> bool:
        """Run a captured graph, padded to its batch size; False if there is none."""
        graphs = self._graphs.get(num_nodes)
        if graphs is None:
            return False
        desc = graphs.dispatch(
            num_reqs, num_reqs, uniform_token_count=1, num_active_loras=0
        )
        if desc.cg_mode != CUDAGraphMode.FULL:
            return False
        graphs.run_fullgraph(desc)
        return True
