# SPDX-License-Identifier: Apache-2.0
"""The worker class that an engine with Medusa uses."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker import cpu_worker

from vllm_medusa import compatibility, timing
from vllm_medusa.attention.cpu import tree_backend
from vllm_medusa.replace import replaced
from vllm_medusa.runner.v1 import MedusaCPUModelRunner


class MedusaCPUWorker(cpu_worker.CPUWorker):
    """vLLM's CPU worker with the Medusa model runner."""

    model_runner: MedusaCPUModelRunner

    def init_device(self) -> None:
        """As `CPUWorker.init_device`, which names the runner class itself."""
        # Workers on other machines may have another vLLM than the API server.
        compatibility.require()
        with replaced(cpu_worker, "CPUModelRunner", MedusaCPUModelRunner):
            super().init_device()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """As `CPUWorker.load_model`; the layers get tree attention."""
        with tree_backend():
            super().load_model(*args, **kwargs)

    def medusa_stats(self) -> dict[str, Any]:
        """Return the runner's counters, for `LLM.collective_rpc("medusa_stats")`."""
        return self.model_runner.stats.as_dict()

    def medusa_timing(self) -> dict[str, Any]:
        """Return and reset seconds per part; see `vllm_medusa.timing`."""
        return timing.read()
