# SPDX-License-Identifier: Apache-2.0
"""The worker class that an engine with Medusa uses on GPUs, and what all share.

Nothing here may import vLLM's CPU worker: that module replaces PyTorch's streams,
events and pinned memory by stand-ins, for the whole process.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from vllm_medusa import timing
from vllm_medusa.attention.tree_backend import tree_backend
from vllm_medusa.distributed.worker_start import require_same_code


class MedusaWorker(Worker):
    """What the workers of all platforms share; `LLM.collective_rpc` may call it."""

    model_runner: Any

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """As `Worker.load_model`; the layers get tree attention."""
        with tree_backend():
            super().load_model(*args, **kwargs)

    def compile_or_warm_up_model(self) -> Any:
        """As `Worker.compile_or_warm_up_model`, which runs requests of its own."""
        times = super().compile_or_warm_up_model()
        self.model_runner.reset_medusa_stats()
        return times

    def medusa_stats(self) -> dict[str, Any]:
        """Return the runner's counters (`vllm_medusa.runner.stats.MedusaStats`)."""
        return self.model_runner.medusa_stats()

    def medusa_timing(self) -> dict[str, Any]:
        """Return and reset seconds per part; see `vllm_medusa.timing`."""
        return timing.read()

    def medusa_memory(self) -> dict[str, int]:
        """Return bytes that the heads' weights ("heads") and everything else of
        Medusa ("buffers") take on the device."""
        return self.model_runner.medusa_memory()


class MedusaGPUWorker(MedusaWorker):
    """vLLM's GPU worker with the Medusa model runner, which is V2."""

    def init_device(self) -> None:
        """As `Worker.init_device`."""
        require_same_code(self.vllm_config)
        timing.use_device_clock(self.device_config.device_type)
        super().init_device()

    def _make_model_runner(self) -> Any:
        """In place of `Worker._make_model_runner`."""
        from vllm_medusa.runner.v2.model_runner import MedusaModelRunner

        return MedusaModelRunner(self.vllm_config, self.device)
