# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of two nodes, each a set of processes of its own on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 80 << 20


@contextmanager
def two_nodes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, slots: dict[str, float]
) -> Iterator[Cluster]:
    """Run a head and a worker node for the block; RAY_ADDRESS names the head.

    A node has one CPU and `slots` as its resources.
    """
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        # A token would be written to the home folder.
        "RAY_AUTH_MODE": "disabled",
    }.items():
        monkeypatch.setenv(name, value)
    options = {
        "num_cpus": 1,
        "resources": slots,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=options)
    try:
        cluster.add_node(**options)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    finally:
        # An engine that failed may have left this process in the cluster.
        ray.shutdown()
        # `Cluster.shutdown` refuses if this process has ever joined it.
        for node in cluster.list_all_nodes():
            node.kill_all_processes(check_alive=False, allow_graceful=True)
