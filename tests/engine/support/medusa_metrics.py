# SPDX-License-Identifier: Apache-2.0
"""The plugin's own metrics of an engine, in a form to compare."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm import LLM
from vllm.v1.metrics.reader import Counter, Histogram

PREFIX = "vllm:medusa_"


@dataclass
class MedusaMetrics:
    """`tokens` and `nodes` count the trees by value; `sums` are those of the histograms
    by name, or by name and label, `counts` their numbers of observations."""

    tokens: dict[int, int] = field(default_factory=dict)
    nodes: dict[int, int] = field(default_factory=dict)
    accepted: list[int] = field(default_factory=list)
    without_tree: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def medusa_metrics(llm: LLM) -> MedusaMetrics:
    """Read what `LLM.get_metrics` gives."""
    result = MedusaMetrics()
    for metric in llm.get_metrics():
        if not metric.name.startswith(PREFIX):
            continue
        name = metric.name.removeprefix(PREFIX)
        assert metric.labels["engine"] == "0"
        assert metric.labels["model_name"]
        own = [v for k, v in metric.labels.items() if k not in ("engine", "model_name")]
        if isinstance(metric, Histogram):
            key = " ".join([name, *own])
            result.sums[key], result.counts[key] = metric.sum, metric.count
            if name == "tokens_per_step":
                result.tokens = _by_value(metric.buckets)
            elif name == "tree_nodes":
                result.nodes = _by_value(metric.buckets)
        else:
            assert isinstance(metric, Counter)
            if name == "accepted_by_depth":
                assert metric.labels["depth"] == str(len(result.accepted) + 1)
                result.accepted.append(metric.value)
            else:
                assert name == "steps_without_tree"
                result.without_tree[metric.labels["reason"]] = metric.value
    return result


def _by_value(buckets: dict[str, int]) -> dict[int, int]:
    """Undo the accumulation; a bucket holds one value where the test looks."""
    values, before = {}, 0
    for bound, count in buckets.items():
        if count > before:
            values[int(float(bound))] = count - before
        before = count
    return values
