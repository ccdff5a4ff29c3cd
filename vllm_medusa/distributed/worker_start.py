# SPDX-License-Identifier: Apache-2.0
"""What a worker checks and sets before it talks to the other ranks."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_medusa import compatibility
from vllm_medusa.distributed.installation import (
    installation,
    noted_installation,
    require_same,
)
from vllm_medusa.engine_config import medusa_config
from vllm_medusa.errors import CheckpointError
from vllm_medusa.replace import replaced

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def require_same_code(vllm_config: VllmConfig) -> None:
    """Refuse to start on a machine whose vLLM is unknown, whose plugin differs from the
    one that the engine was started with, or which lacks the heads.

    Raises:
        UnsupportedError: naming what differs.
        CheckpointError: naming the heads.
    """
    compatibility.require()
    heads = Path(medusa_config(vllm_config).heads)
    where = f"the worker process {os.getpid()} on {socket.gethostname()}"
    require_same(noted_installation(vllm_config), installation(), where)
    if not heads.exists():
        raise CheckpointError(
            f"{where} has no {heads}: put the heads there on every machine (for those "
            "of the Hugging Face hub, in the same cache folder)"
        )


@contextmanager
def shared_memory_by_machine(vllm_config: VllmConfig) -> Iterator[None]:
    """Let ranks on a CPU talk through shared memory only if they share a machine.

    vLLM takes shared memory if all ranks of a group know it by one name, which it
    makes from the port they meet at: the same on every machine, where it would wait
    forever. With the machine in the name ranks on several take gloo.
    """
    from vllm.distributed.device_communicators import cpu_communicator

    shared = cpu_communicator._CPUSHMDistributed
    upstream, machine = shared.make_group_name, _machine(vllm_config)

    def make_group_name(communicator: Any) -> str:
        return f"{upstream(communicator)}-{machine}"

    with replaced(shared, "make_group_name", staticmethod(make_group_name)):
        yield


def _machine(vllm_config: VllmConfig) -> str:
    """Return what tells apart the machines of an engine: a short text."""
    from vllm.ray.lazy_utils import is_in_ray_actor

    if is_in_ray_actor():
        import ray

        # Nodes may be containers of one machine, each with a memory of its own.
        return str(ray.get_runtime_context().get_node_id())[:12]
    return str(vllm_config.parallel_config.node_rank)
