# SPDX-License-Identifier: Apache-2.0
"""A worker extension that tells what a worker of vLLM does with its device.

vLLM mixes the class into the worker's (`LLM(worker_extension_cls=PROBE)`); its methods
are called by `LLM.collective_rpc`, in plain engines and in those with Medusa.
"""

from __future__ import annotations

from typing import Any

PROBE = "benchmarks.gpu.worker_probe.WorkerProbe"


class WorkerProbe:
    """Mixed into the worker class by vLLM (`WorkerWrapperBase.init_worker`)."""

    model_runner: Any
    vllm_config: Any

    def probe_graphs(self) -> dict[str, Any]:
        """The CUDA graphs that the engine ended up with.

        "mode": vLLM lowers it if an attention back end can't be captured. "captured":
        [requests, rows of each] of every graph for decode steps (Model Runner V2).
        """
        mode = self.vllm_config.compilation_config.cudagraph_mode
        manager = getattr(self.model_runner, "cudagraph_manager", None)
        captured = {
            (graph.num_reqs, graph.uniform_token_count)
            for graph in getattr(manager, "graphs", ())
            if graph.uniform_token_count is not None
        }
        return {"mode": mode.name, "captured": [list(g) for g in sorted(captured)]}

    def probe_memory(self) -> dict[str, int]:
        """Bytes that PyTorch holds on the device, and the KV cache's share of them.

        With Medusa also "heads" and "buffers", as `medusa_memory` counts them. On a
        CPU nothing is allocated on a device.
        """
        import torch

        figures = {"allocated": 0, "reserved": 0}
        if torch.cuda.is_available():
            figures["allocated"] = torch.cuda.memory_allocated()
            figures["reserved"] = torch.cuda.memory_reserved()
        if hasattr(self, "medusa_memory"):
            figures |= self.medusa_memory()
        return figures

    def probe_sync_check(self) -> dict[str, bool]:
        """Whether vLLM refuses host synchronisation in a step, and would notice one.

        With VLLM_GPU_SYNC_CHECK=error, vLLM sets `torch.cuda.set_sync_debug_mode`
        around its worker's `execute_model` and `sample_tokens` (all of a step:
        preparation, verification, the K/V move, the heads) once it has warmed up. To
        prove it, a function that waits for the device is run under the same check.
        """
        import torch
        from vllm.utils import gpu_sync_debug

        armed = gpu_sync_debug._SYNC_CHECK_MODE == "error"
        armed = armed and gpu_sync_debug._sync_check_enabled
        notices = False
        if armed:
            tensor = torch.ones((), device="cuda")
            wait = gpu_sync_debug.with_gpu_sync_check(tensor.item)
            try:
                wait()
            except RuntimeError:
                notices = True
        return {"armed": armed, "notices": notices}
