# SPDX-License-Identifier: Apache-2.0
"""Which Ray cluster is joined, and which of its resources holds a rank."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_medusa.distributed import ray_cluster
from vllm_medusa.errors import ConfigError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stand in for Ray where no cluster runs; what it is asked for."""
    calls: list[tuple[Any, ...]] = []

    def init(address: str, **options: Any) -> None:
        calls.append((address, options))
        if address == "auto":
            raise ConnectionError("no cluster")

    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster.ray, "init", init)
    monkeypatch.setattr(ray_cluster.ray, "shutdown", lambda: calls.append(("end",)))
    monkeypatch.setattr(ray_cluster, "_has_joined", False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return calls


def offer(monkeypatch: pytest.MonkeyPatch, **resources: float) -> None:
    monkeypatch.setattr(ray_cluster.ray, "cluster_resources", lambda: resources)


def test_one_is_started_where_there_is_none(started, monkeypatch):
    offer(monkeypatch, CPU=2, vllm_cpu_slot=2)
    assert ray_cluster.connect(2) == ray_cluster.SLOT
    assert [call[0] for call in started] == ["auto", "local"]
    options = started[1][1]
    assert options["resources"] == {ray_cluster.SLOT: 2}
    assert options["include_dashboard"] is False
    ray_cluster.leave()
    ray_cluster.leave()
    assert started[2:] == [("end",)]


def test_usage_statistics_are_off_unless_asked_for(started, monkeypatch):
    offer(monkeypatch, CPU=2)
    # Set first, so that it is restored.
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    ray_cluster.connect(1)
    assert ray_cluster.os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    ray_cluster.connect(1)
    assert ray_cluster.os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_an_address_that_leads_nowhere(started, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=10\.0\.0\.9:6379.*unset"):
        ray_cluster.connect(2)
    assert [call[0] for call in started] == ["auto"]


def test_none_is_looked_for_if_a_local_one_is_asked_for(started, monkeypatch):
    offer(monkeypatch, CPU=2, vllm_cpu_slot=2)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert ray_cluster.connect(2) == ray_cluster.SLOT
    assert [call[0] for call in started] == ["local"]


def test_a_cluster_that_was_joined_before_is_kept(started, monkeypatch):
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: True)
    offer(monkeypatch, CPU=4)
    assert ray_cluster.connect(4) == ray_cluster.CPU
    ray_cluster.leave()
    assert started == []


def test_too_few_places_leave_an_engine_its_cluster(started, monkeypatch):
    """An engine that runs in the cluster must not lose it to one that can't start."""
    offer(monkeypatch, CPU=2)
    ray_cluster.connect(2)
    joined = list(started)
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="3 ranks"):
        ray_cluster.connect(3)
    assert started == joined
    ray_cluster.leave()
    assert started == [*joined, ("end",)]


def test_slots_come_before_cpus(started, monkeypatch):
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: True)
    offer(monkeypatch, CPU=64, vllm_cpu_slot=1)
    with pytest.raises(ConfigError, match=r"2 ranks .*'vllm_cpu_slot'.* has 1: .*ray"):
        ray_cluster.connect(2)
    assert ray_cluster.connect(1) == ray_cluster.SLOT
