# SPDX-License-Identifier: Apache-2.0
"""Which executor runs the ranks of an engine with Medusa."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_medusa.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from vllm.engine.arg_utils import EngineArgs


def choose_executor(engine_args: EngineArgs) -> None:
    """Replace `--distributed-executor-backend ray` on a CPU by our executor, since
    vLLM's own asks the platform for a Ray resource, and the CPU platform has none.

    On other platforms, and for other backends, nothing changes.

    Raises:
        ConfigError: Ray is not installed.
        UnsupportedError: data parallelism by Ray, or several nodes without Ray, on a
            CPU.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    if engine_args.data_parallel_backend == "ray":
        raise UnsupportedError(
            "vLLM has no --data-parallel-backend ray for CPUs: use mp, the default"
        )
    if engine_args.nnodes > 1:
        raise UnsupportedError(
            f"Medusa does not support --nnodes {engine_args.nnodes} on CPUs: use "
            "--distributed-executor-backend ray for several machines"
        )
    if engine_args.distributed_executor_backend != "ray":
        return
    from vllm.v1.executor.ray_utils import ray_is_available

    if not ray_is_available():
        raise ConfigError(
            "--distributed-executor-backend ray needs Ray, which is not installed: "
            "pip install 'vllm-medusa[ray]', or use mp"
        )
    from vllm_medusa.distributed.ray_cpu_executor import RayCPUExecutor

    engine_args.distributed_executor_backend = RayCPUExecutor
