# SPDX-License-Identifier: Apache-2.0
"""vLLM's Ray executor on the CPU platform, which that executor refuses."""

from __future__ import annotations

import os
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.executor import ray_executor_v2
from vllm.v1.executor.ray_executor_v2 import RayExecutorV2

from vllm_medusa.distributed import ray_cluster
from vllm_medusa.distributed.ray_cpu_worker import RayCPUWorkerProc
from vllm_medusa.replace import replaced

THREAD_VARIABLES = ("OMP_NUM_THREADS", "LD_PRELOAD")
"""Read when a process starts: too early for what vLLM copies from the driver."""


class RayCPUExecutor(RayExecutorV2):
    """One Ray actor per rank, each in a slot of its own.

    A slot is one unit of the Ray resource `ray_cluster.SLOT` if the cluster's nodes
    were started with some, else one CPU of Ray's. Without a cluster, one is started
    on this machine for as long as the engine lives.
    """

    def _init_executor(self) -> None:
        """As `RayExecutorV2._init_executor`, with slots for devices."""
        resource = ray_cluster.connect(
            self.parallel_config.world_size, self.parallel_config.ray_runtime_env
        )
        with (
            replaced(type(current_platform), "ray_device_key", resource),
            replaced(ray_executor_v2, "RayWorkerProc", RayCPUWorkerProc),
        ):
            super()._init_executor()

    def shutdown(self) -> None:
        """As `RayExecutorV2.shutdown`, and leaves the cluster: left to the end of the
        process, Ray's own processes may outlive it."""
        super().shutdown()
        ray_cluster.leave()

    def _build_runtime_env(self) -> dict[str, Any]:
        """As `RayExecutorV2._build_runtime_env`; the ranks are placed by then, so that
        their nodes can be looked at before anything is loaded there."""
        runtime_env: dict[str, Any] = super()._build_runtime_env()
        for name in THREAD_VARIABLES:
            if name in os.environ:
                runtime_env["env_vars"].setdefault(name, os.environ[name])
        ray_cluster.require_same_plugin(
            self.parallel_config.placement_group, runtime_env
        )
        return runtime_env

    @staticmethod
    def _get_actor_resource_kwargs() -> dict[str, Any]:
        """As `RayExecutorV2._get_actor_resource_kwargs`. A CPU is held by the actor's
        bundle; Ray takes no CPUs by resource name."""
        if current_platform.ray_device_key == ray_cluster.CPU:
            return {"num_gpus": 0}
        kwargs: dict[str, Any] = RayExecutorV2._get_actor_resource_kwargs()
        return kwargs
