# SPDX-License-Identifier: Apache-2.0
"""The Ray cluster that an engine on CPUs runs in."""

from __future__ import annotations

import importlib
import os
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from vllm.logger import init_logger

from vllm_medusa.distributed.installation import installation, require_same
from vllm_medusa.errors import ConfigError, UnsupportedError

logger = init_logger("vllm.medusa")

SLOT = "vllm_cpu_slot"
"""Ray resource that counts how many ranks a node takes."""
CPU = "CPU"
"""Ray's own resource, used where no node has slots."""

_OBJECT_STORE_BYTES = 100 << 20
"""Of a cluster of our own. vLLM's ranks talk past Ray's object store; Ray asks for 75
MiB at least and would take 30 % of the memory."""

_has_joined = False
"""Whether it was `connect` that connected this process."""


def connect(world_size: int, runtime_env: Any = None) -> str:
    """Join the Ray cluster that there is, or start one on this machine.

    As `ray.init("auto")` looks for it: RAY_ADDRESS, else any that runs on this machine;
    RAY_ADDRESS=local always starts one. A cluster of our own ends with this process.

    Returns:
        The resource that holds a place for a rank, `SLOT` or `CPU`.

    Raises:
        ConfigError: RAY_ADDRESS leads nowhere, or the cluster has too few places.
    """
    # As vLLM's own executor: no statistics are sent unless asked for.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    global _has_joined
    if ray.is_initialized():
        return _resource(world_size)
    address = os.environ.get("RAY_ADDRESS")
    if address == "local":
        _start(world_size, runtime_env)
    else:
        _join_or_start(address, world_size, runtime_env)
    _has_joined = True
    try:
        return _resource(world_size)
    except ConfigError:
        leave()
        raise


def _join_or_start(address: str | None, world_size: int, runtime_env: Any) -> None:
    try:
        ray.init("auto", runtime_env=runtime_env)
    except ConnectionError as error:
        if address is not None:
            raise ConfigError(
                f"there is no Ray cluster at RAY_ADDRESS={address} ({error}): "
                "start it, or unset RAY_ADDRESS to have one started here"
            ) from error
        _start(world_size, runtime_env)


def leave() -> None:
    """End the cluster that `connect` started, or leave the one that it joined. Whoever
    had joined one before goes on with it."""
    global _has_joined
    if _has_joined:
        _has_joined = False
        ray.shutdown()


def _start(world_size: int, runtime_env: Any) -> None:
    logger.info("No Ray cluster is running: starting one for %d ranks", world_size)
    ray.init(
        "local",
        num_cpus=world_size,
        resources={SLOT: world_size},
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        runtime_env=runtime_env,
    )


def _resource(world_size: int) -> str:
    total = ray.cluster_resources()
    resource = SLOT if total.get(SLOT, 0) else CPU
    if total.get(resource, 0) < world_size:
        raise ConfigError(
            f"{world_size} ranks need as many units of the Ray resource {resource!r}, "
            f"and the cluster has {total.get(resource, 0):g}: start its nodes with "
            f"`ray start … --resources '{{\"{SLOT}\": N}}'` for N ranks on a node, "
            "or lower --tensor-parallel-size"
        )
    return resource


def require_same_plugin(
    placement_group: PlacementGroup, runtime_env: dict[str, Any]
) -> None:
    """Refuse nodes whose plugin is not this one, before they load a model.

    Raises:
        UnsupportedError: naming the node and what it has.
    """

    # Sent by value, being local: a node may lack this module.
    def look(module: str) -> tuple[str, Any]:
        address = ray.util.get_node_ip_address()
        try:
            return address, importlib.import_module(module).installation()
        except ImportError as error:
            return address, f"{type(error).__name__}: {error}"

    looks = [
        ray.remote(look)
        .options(
            num_cpus=0,
            runtime_env=runtime_env,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group, placement_group_bundle_index=bundle
            ),
        )
        .remote("vllm_medusa.distributed.installation")
        for bundle in range(placement_group.bundle_count)
    ]
    for address, found in ray.get(looks):
        if isinstance(found, str):
            raise UnsupportedError(
                f"Ray node {address} can't import vllm-medusa ({found}): install "
                "what runs here on every node"
            )
        require_same(installation(), found, f"Ray node {address}")
