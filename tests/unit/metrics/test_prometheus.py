# SPDX-License-Identifier: Apache-2.0
"""What Prometheus gets to see, by engine."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
from prometheus_client import REGISTRY
from vllm.v1.metrics.prometheus import unregister_vllm_metrics

from vllm_medusa.metrics.prometheus import MedusaPrometheus, node_buckets
from vllm_medusa.metrics.stats import REASONS, MedusaStepStats
from vllm_medusa.timing import PARTS

LABELS = {0: ["base", "0"], 3: ["base", "3"]}


@pytest.fixture
def metrics() -> Iterator[MedusaPrometheus]:
    """The metrics of two engines, with trees of 6 nodes and depth 3."""
    # Those of an engine that ran in this process before.
    unregister_vllm_metrics()
    upstream: Any = SimpleNamespace(
        per_engine_labelvalues=LABELS,
        _histogram_cls=prometheus_client.Histogram,
        _counter_cls=prometheus_client.Counter,
    )
    yield MedusaPrometheus(upstream, 6, 3)
    unregister_vllm_metrics()


def value(name: str, engine: str = "3", **labels: str) -> float | None:
    labels |= {"model_name": "base", "engine": engine}
    return REGISTRY.get_sample_value(f"vllm:medusa_{name}", labels)


def test_everything_is_there_from_the_start(metrics: MedusaPrometheus) -> None:
    for engine in ("0", "3"):
        assert value("tokens_per_step_count", engine) == 0
        assert value("tree_nodes_count", engine) == 0
        assert value("timed_step_seconds_count", engine) == 0
        for depth in ("1", "2", "3"):
            assert value("accepted_by_depth_total", engine, depth=depth) == 0
        for reason in REASONS:
            assert value("steps_without_tree_total", engine, reason=reason) == 0
        for tree in ("yes", "no"):
            assert value("decode_step_seconds_count", engine, tree=tree) == 0
        for part in PARTS:
            assert value("step_part_seconds_count", engine, part=part) == 0
    assert value("accepted_by_depth_total", depth="4") is None


def test_what_was_observed(metrics: MedusaPrometheus) -> None:
    stats = MedusaStepStats()
    for num_accepted in (0, 0, 2):
        stats.observe_trees(6, num_accepted, num_accepted + 1)
    stats.observe_trees(5, 3, 2)
    stats.observe_without_tree("load")
    stats.observe_without_tree("load")
    stats.observe_decode_step(0.25, True)
    stats.observe_decode_step(0.5, False)
    stats.observe_parts({"step": 0.25, "propose": 0.0625, "attention": 0.125})
    metrics.observe(stats, 3)
    assert value("tokens_per_step_sum") == 7
    assert value("tokens_per_step_bucket", le="1.0") == 2
    assert value("tokens_per_step_bucket", le="4.0") == 4
    assert value("tree_nodes_sum") == 23
    assert [
        value("accepted_by_depth_total", depth=depth) for depth in ("1", "2", "3")
    ] == [2, 2, 1]
    assert value("steps_without_tree_total", reason="load") == 2
    assert value("decode_step_seconds_sum", tree="yes") == 0.25
    assert value("decode_step_seconds_sum", tree="no") == 0.5
    assert value("timed_step_seconds_sum") == 0.25
    assert value("step_part_seconds_sum", part="propose") == 0.0625
    # All parts of a step that was timed have a time, those that did not run 0.
    assert value("step_part_seconds_count", part="move") == 1
    # The other engine has none of it.
    assert value("tokens_per_step_count", "0") == 0
    metrics.observe(stats, 3)
    assert value("tokens_per_step_sum") == 14


def test_buckets_of_a_tree() -> None:
    assert node_buckets(1) == [0, 1]
    assert node_buckets(6) == [0, 1, 2, 4, 6]
    assert node_buckets(64) == [0, 1, 2, 4, 8, 16, 32, 64]
