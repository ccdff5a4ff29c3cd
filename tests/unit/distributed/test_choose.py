# SPDX-License-Identifier: Apache-2.0
"""Which executor an engine with Medusa gets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.platforms import current_platform
from vllm.v1.executor import ray_utils

from vllm_medusa.distributed.choose import choose_executor
from vllm_medusa.errors import ConfigError, UnsupportedError


def arguments(**options: Any) -> Any:
    """What `choose_executor` reads of `EngineArgs`."""
    defaults = {
        "distributed_executor_backend": None,
        "data_parallel_backend": "mp",
        "nnodes": 1,
    }
    return SimpleNamespace(**defaults | options)


@pytest.mark.parametrize("backend", [None, "mp", "uni"])
def test_others_are_left_alone(backend: str | None) -> None:
    engine_args = arguments(distributed_executor_backend=backend)
    choose_executor(engine_args)
    assert engine_args.distributed_executor_backend == backend


def test_ray_on_a_cpu() -> None:
    engine_args = arguments(distributed_executor_backend="ray")
    choose_executor(engine_args)
    executor = engine_args.distributed_executor_backend
    assert isinstance(executor, type) and executor.uses_ray
    assert executor.__name__ == "RayCPUExecutor"


def test_ray_elsewhere_is_vllms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    engine_args = arguments(
        distributed_executor_backend="ray", data_parallel_backend="ray"
    )
    choose_executor(engine_args)
    assert engine_args.distributed_executor_backend == "ray"


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_utils, "ray_is_available", lambda: False)
    engine_args = arguments(distributed_executor_backend="ray")
    with pytest.raises(ConfigError, match=r"vllm-medusa\[ray\].*or use mp"):
        choose_executor(engine_args)


def test_replicas_on_ray() -> None:
    engine_args = arguments(data_parallel_backend="ray")
    with pytest.raises(UnsupportedError, match=r"--data-parallel-backend ray.*use mp"):
        choose_executor(engine_args)


def test_several_nodes_without_ray() -> None:
    with pytest.raises(UnsupportedError, match=r"--nnodes 2 on CPUs: .*backend ray"):
        choose_executor(arguments(nnodes=2, distributed_executor_backend="mp"))
