# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs on a CPU: what was captured runs again, on the buffers of the capture.

A CUDA graph replays kernels on the addresses of the capture. Here the captured
function is called again, with the inputs and the attention metadata that vLLM made for
the capture. As on a GPU, whatever changes from step to step must reach it through the
buffers that were there then, padding included; anything else gives a wrong text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from vllm import LLM
from vllm.config import set_current_vllm_config
from vllm.config.compilation import CUDAGraphMode
from vllm.platforms import current_platform
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

from vllm_medusa.runner.v2.model_graphs import TreeGraphManager


class ReplayedGraph:
    """Stands for `torch.cuda.CUDAGraph`."""

    def __init__(self, forward: Callable[[CUDAGraphMode], None]) -> None:
        self.forward = forward
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.forward(CUDAGraphMode.NONE)


@torch.inference_mode()
def _capture(
    manager: Any, create_forward_fn: Callable[..., Any], progress_bar_desc: str = ""
) -> None:
    """As `CudaGraphManager.capture`, for full graphs."""
    for desc in manager._capture_descs[CUDAGraphMode.FULL]:
        create_forward_fn(desc, warmup=True)(CUDAGraphMode.NONE)
        forward = create_forward_fn(desc, warmup=False)
        forward(CUDAGraphMode.NONE)
        manager.graphs[desc] = ReplayedGraph(forward)
    manager._graphs_captured = True


@contextmanager
def replayed_graphs(
    llm: LLM, capture_sizes: list[int]
) -> Iterator[dict[str, dict[Any, ReplayedGraph]]]:
    """Capture the model and the heads of a running engine; yield the graphs of both.

    `capture_sizes` are numbers of tokens, as in
    `CompilationConfig.cudagraph_capture_sizes`.
    """
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
    runner = runner.worker.model_runner
    compilation = runner.vllm_config.compilation_config
    compilation.cudagraph_capture_sizes = capture_sizes
    compilation.max_cudagraph_capture_size = max(capture_sizes)
    mode = CUDAGraphMode.FULL_DECODE_ONLY
    with (
        pytest.MonkeyPatch.context() as patches,
        set_current_vllm_config(runner.vllm_config),
    ):
        patches.setattr(CudaGraphManager, "capture", _capture)
        # Graphs share a memory pool, which a CPU has not.
        patches.setattr(type(current_platform), "_global_graph_pool", object())
        manager = TreeGraphManager(
            runner.vllm_config, runner.device, mode, runner.decode_query_len
        )
        manager.capture(
            runner.model,
            runner.model_state,
            runner.input_buffers,
            None,
            runner.block_tables,
            runner.attn_groups,
            runner.kv_cache_config,
        )
        runner.speculator.init_cudagraph_manager(mode)
        runner.speculator.capture()
    runner.cudagraph_manager = manager
    heads = {
        (nodes, desc.num_tokens): graph
        for nodes, graphs in runner.speculator._graphs._graphs.items()
        for desc, graph in graphs.graphs.items()
    }
    model = {(d.num_reqs, d.uniform_token_count): g for d, g in manager.graphs.items()}
    yield {"model": model, "heads": heads}
