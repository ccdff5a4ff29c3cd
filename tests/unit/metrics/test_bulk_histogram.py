# SPDX-License-Identifier: Apache-2.0
"""Many observations at once are as good as one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram

from vllm_medusa.metrics.bulk_histogram import observe_many

OBSERVED = {0.0: 2, 1.0: 3, 1.5: 4, 4.0: 1, 9.0: 5, 2.0: 0}

PROCESS = f"""
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from vllm_medusa.metrics.bulk_histogram import observe_many

histogram = Histogram("h", "", ["engine"], buckets=[1, 2, 4]).labels("0")
for value, count in {OBSERVED}.items():
    observe_many(histogram, value, count)
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def samples(bulk: bool) -> dict[tuple[str, str | None], float]:
    registry = CollectorRegistry()
    parent = Histogram("h", "", ["engine"], buckets=[1, 2, 4], registry=registry)
    histogram = parent.labels("0")
    for value, count in OBSERVED.items():
        if bulk:
            observe_many(histogram, value, count)
        else:
            for _ in range(count):
                histogram.observe(value)
    (metric,) = registry.collect()
    return {
        (s.name, s.labels.get("le")): s.value
        for s in metric.samples
        if s.name != "h_created"
    }


def test_as_one_by_one() -> None:
    assert samples(bulk=True) == samples(bulk=False)
    assert samples(bulk=True)["h_bucket", "1.0"] == 5


def test_processes_that_share_their_metrics(tmp_path: Path) -> None:
    """Two, one after another, of several API servers."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        shown = subprocess.run(
            [sys.executable, "-c", PROCESS],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    for (name, bound), value in samples(bulk=False).items():
        labels = 'engine="0"' + (f',le="{bound}"' if bound else "")
        assert f"{name}{{{labels}}} {2 * value}" in shown


def test_histograms_of_others_observe_one_by_one() -> None:
    class Wrapper:
        def __init__(self) -> None:
            self.values: list[float] = []

        def observe(self, value: float) -> None:
            self.values.append(value)

    wrapper = Wrapper()
    observe_many(wrapper, 2.0, 3)
    assert wrapper.values == [2.0] * 3


@pytest.mark.parametrize("value", [-1.0, 4.0, float("inf")])
def test_bounds(value: float) -> None:
    """A bucket's bound belongs to it."""
    pair = [Histogram("h", "", buckets=[1, 4], registry=None) for _ in range(2)]
    observe_many(pair[0], value, 1)
    pair[1].observe(value)
    assert [b.get() for b in pair[0]._buckets] == [b.get() for b in pair[1]._buckets]
