# SPDX-License-Identifier: Apache-2.0
"""Medusa's metrics as Prometheus shows them; docs/metrics.md describes each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.utils import create_metric_per_engine

from vllm_medusa.metrics.bulk_histogram import observe_many
from vllm_medusa.metrics.stats import REASONS, MedusaStepStats
from vllm_medusa.timing import PARTS

# A part of a step takes microseconds to milliseconds, a step up to some seconds.
_PART_BUCKETS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05)
_STEP_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

# vLLM's children by engine index.
_Children = Mapping[int, Any]


class MedusaPrometheus:
    """The metrics of the engines behind one front end.

    Counters and histograms only: those of several front ends, and of the processes of
    Prometheus' multiprocess mode, add up.
    """

    def __init__(
        self, prometheus: PrometheusStatLogger, max_nodes: int, max_depth: int
    ) -> None:
        """Register the metrics.

        Args:
            prometheus: vLLM's own; gives the labels of each engine, and the classes
                of the metrics, which are Ray's where vLLM's are.
            max_nodes: nodes of the largest tree.
            max_depth: its depth.
        """
        self._labels = prometheus.per_engine_labelvalues
        self._histogram_cls = prometheus._histogram_cls
        self._counter_cls = prometheus._counter_cls
        self._tokens = self._histogram(
            "vllm:medusa_tokens_per_step",
            "Tokens that a request got from one verified tree.",
            [float(tokens) for tokens in range(1, max_depth + 2)],
        )
        self._nodes = self._histogram(
            "vllm:medusa_tree_nodes",
            "Nodes of the verified trees.",
            node_buckets(max_nodes),
        )
        self._accepted = self._counters(
            "vllm:medusa_accepted_by_depth",
            "Trees whose accepted path has a node of this depth.",
            "depth",
            [str(depth) for depth in range(1, max_depth + 1)],
        )
        self._without_tree = self._counters(
            "vllm:medusa_steps_without_tree",
            "Steps of requests that brought a token without a tree, by reason.",
            "reason",
            REASONS,
        )
        self._step_seconds = self._histograms(
            "vllm:medusa_decode_step_seconds",
            "Time of steps in which every request decodes, by whether a tree was "
            "verified.",
            _STEP_BUCKETS,
            "tree",
            ("no", "yes"),
        )
        self._timed_steps = self._histogram(
            "vllm:medusa_timed_step_seconds",
            "Time that the worker spent on steps with trees whose parts were timed.",
            _STEP_BUCKETS,
        )
        self._parts = self._histograms(
            "vllm:medusa_step_part_seconds",
            "Time of the parts of the steps that medusa_timed_step_seconds counts.",
            _PART_BUCKETS,
            "part",
            PARTS,
        )

    def observe(self, stats: MedusaStepStats, engine: int) -> None:
        """Add what an engine has observed."""
        for histogram, counts in (
            (self._tokens[engine], stats.tokens),
            (self._nodes[engine], stats.nodes),
        ):
            for value, count in counts.items():
                observe_many(histogram, value, count)
        for depth, count in enumerate(stats.accepted, start=1):
            self._accepted[str(depth)][engine].inc(count)
        for reason, count in stats.without_tree.items():
            self._without_tree[reason][engine].inc(count)
        for seconds, has_trees in zip(
            stats.step_seconds, stats.step_has_trees, strict=True
        ):
            self._step_seconds["yes" if has_trees else "no"][engine].observe(seconds)
        for parts in stats.parts:
            self._timed_steps[engine].observe(parts["step"])
            for part in PARTS:
                self._parts[part][engine].observe(parts.get(part, 0.0))

    def _histogram(
        self, name: str, documentation: str, buckets: Sequence[float]
    ) -> _Children:
        metric = self._histogram_cls(
            name=name,
            documentation=documentation,
            buckets=buckets,
            labelnames=["model_name", "engine"],
        )
        return create_metric_per_engine(metric, self._labels)

    def _histograms(
        self,
        name: str,
        documentation: str,
        buckets: Sequence[float],
        label: str,
        values: Sequence[str],
    ) -> dict[str, _Children]:
        metric = self._histogram_cls(
            name=name,
            documentation=documentation,
            buckets=buckets,
            labelnames=["model_name", "engine", label],
        )
        return self._children(metric, values)

    def _counters(
        self, name: str, documentation: str, label: str, values: Sequence[str]
    ) -> dict[str, _Children]:
        metric = self._counter_cls(
            name=name,
            documentation=documentation,
            labelnames=["model_name", "engine", label],
        )
        return self._children(metric, values)

    def _children(self, metric: Any, values: Sequence[str]) -> dict[str, _Children]:
        """Return by value of the last label the children of all engines; they are
        there from the start, at 0."""
        return {
            value: create_metric_per_engine(
                metric,
                {engine: [*own, value] for engine, own in self._labels.items()},
            )
            for value in values
        }


def node_buckets(max_nodes: int) -> list[float]:
    """Return the buckets of a tree's size: powers of two, and the largest tree."""
    buckets = [0.0]
    size = 1
    while size < max_nodes:
        buckets.append(float(size))
        size *= 2
    return [*buckets, float(max_nodes)]
