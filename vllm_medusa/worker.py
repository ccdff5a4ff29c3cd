# SPDX-License-Identifier: Apache-2.0
"""The worker classes that an engine with Medusa uses."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker import cpu_worker, gpu_worker

from vllm_medusa import compatibility, timing
from vllm_medusa.attention.tree_backend import tree_backend
from vllm_medusa.replace import replaced


class _MedusaWorker(gpu_worker.Worker):
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
        """Return the runner's counters (`vllm_medusa.runner.requests.MedusaStats`)."""
        return self.model_runner.medusa_stats()

    def medusa_timing(self) -> dict[str, Any]:
        """Return and reset seconds per part; see `vllm_medusa.timing`."""
        return timing.read()

    def medusa_memory(self) -> dict[str, int]:
        """Return bytes that the heads' weights ("heads") and everything else of
        Medusa ("buffers") take on the device."""
        return self.model_runner.medusa_memory()


class MedusaCPUWorker(_MedusaWorker, cpu_worker.CPUWorker):
    """vLLM's CPU worker with the Medusa model runner, V1 or V2."""

    def init_device(self) -> None:
        """As `CPUWorker.init_device`, which names the runner class itself."""
        # Workers on other machines may have another vLLM than the API server.
        compatibility.require()
        if self.use_v2_model_runner:
            from vllm.v1.worker.cpu import model_runner

            from vllm_medusa.runner.v2.model_runner import MedusaCPUModelRunner

            with replaced(model_runner, "CPUModelRunner", MedusaCPUModelRunner):
                super().init_device()
        else:
            from vllm_medusa.runner.v1 import MedusaCPUModelRunner as RunnerV1

            with replaced(cpu_worker, "CPUModelRunner", RunnerV1):
                super().init_device()


class MedusaGPUWorker(_MedusaWorker):
    """vLLM's GPU worker with the Medusa model runner, which is V2."""

    def init_device(self) -> None:
        """As `Worker.init_device`."""
        compatibility.require()
        timing.use_device_clock(self.device_config.device_type)
        super().init_device()

    def _make_model_runner(self) -> Any:
        """In place of `Worker._make_model_runner`."""
        from vllm_medusa.runner.v2.model_runner import MedusaModelRunner

        return MedusaModelRunner(self.vllm_config, self.device)
