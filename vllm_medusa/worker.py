# SPDX-License-Identifier: Apache-2.0
"""The worker class that an engine with Medusa uses on a CPU."""

from __future__ import annotations

from vllm.v1.worker import cpu_worker

from vllm_medusa.distributed.worker_start import (
    require_same_code,
    shared_memory_by_machine,
)
from vllm_medusa.gpu_worker import MedusaWorker
from vllm_medusa.replace import replaced


class MedusaCPUWorker(MedusaWorker, cpu_worker.CPUWorker):
    """vLLM's CPU worker with the Medusa model runner, V1 or V2."""

    def init_device(self) -> None:
        """As `CPUWorker.init_device`, which names the runner class itself."""
        require_same_code(self.vllm_config)
        with shared_memory_by_machine(self.vllm_config):
            self._init_device_with_runner()

    def _init_device_with_runner(self) -> None:
        if self.use_v2_model_runner:
            from vllm.v1.worker.cpu import model_runner

            from vllm_medusa.runner.v2.model_runner import MedusaCPUModelRunner

            with replaced(model_runner, "CPUModelRunner", MedusaCPUModelRunner):
                super().init_device()
        else:
            from vllm_medusa.runner.v1 import MedusaCPUModelRunner as RunnerV1

            with replaced(cpu_worker, "CPUModelRunner", RunnerV1):
                super().init_device()
