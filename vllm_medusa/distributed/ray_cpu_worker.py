# SPDX-License-Identifier: Apache-2.0
"""The Ray actor of one rank on a CPU."""

from __future__ import annotations

import ray
from vllm.v1.executor.ray_executor_v2 import RayWorkerProc


class RayCPUWorkerProc(RayWorkerProc):
    """vLLM's actor, which has no accelerator to be told of."""

    def get_node_and_physical_gpu_ids(self) -> tuple[str, list[int]]:
        """As `RayWorkerProc.get_node_and_physical_gpu_ids`: the node's id alone."""
        return ray.get_runtime_context().get_node_id(), []

    def initialize_worker(
        self,
        local_rank: int,
        env_vars: dict[str, str],
        distributed_init_method: str,
        driver_env_vars: dict[str, str] | None = None,
        assigned_physical_gpu_ids: list[int] | None = None,
    ) -> None:
        """As `RayWorkerProc.initialize_worker`. vLLM 0.33 takes the ids for memory
        nodes, and an empty list for none that may be used."""
        super().initialize_worker(
            local_rank, env_vars, distributed_init_method, driver_env_vars
        )
