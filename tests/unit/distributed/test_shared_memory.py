# SPDX-License-Identifier: Apache-2.0
"""Ranks take each other's shared memory for theirs only on one machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.distributed.device_communicators import cpu_communicator

from vllm_medusa.distributed.worker_start import shared_memory_by_machine


def name_on(node_rank: int) -> str:
    config: Any = SimpleNamespace(parallel_config=SimpleNamespace(node_rank=node_rank))
    group = SimpleNamespace(unique_name="tp:0", ranks=[0, 1])
    with shared_memory_by_machine(config):
        return cpu_communicator._CPUSHMDistributed.make_group_name(group)


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DIST_IDENT", "12345")
    upstream = cpu_communicator._CPUSHMDistributed.make_group_name
    assert name_on(0) == name_on(0)
    assert name_on(0) != name_on(1)
    assert "12345" in name_on(0)
    # POSIX names of shared memory have at most 255 characters.
    assert len(name_on(0)) < 200
    assert cpu_communicator._CPUSHMDistributed.make_group_name is upstream
