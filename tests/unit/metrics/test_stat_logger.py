# SPDX-License-Identifier: Apache-2.0
"""Whose statistics are shown where, and the line in the log."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.metrics.loggers import (
    AggregatedLoggingStatLogger,
    LoggingStatLogger,
    PerEngineStatLoggerAdapter,
)
from vllm.v1.metrics.stats import SchedulerStats

from vllm_medusa.metrics import interval_log
from vllm_medusa.metrics.interval_log import MedusaLogging, describe
from vllm_medusa.metrics.stat_logger import MedusaStatLogger
from vllm_medusa.metrics.stats import MedusaSchedulerStats, MedusaStepStats


def observed(num_trees: int = 4, num_accepted: int = 1) -> MedusaStepStats:
    stats = MedusaStepStats()
    for _ in range(num_trees):
        stats.observe_tree(5, num_accepted, num_accepted + 1)
    return stats


def recorded(stats: MedusaStepStats) -> SchedulerStats:
    return MedusaSchedulerStats.of(SchedulerStats(), stats)


def uninitialised(cls: type, **attributes: Any) -> Any:
    """One of vLLM's loggers, without an engine."""
    logger = cls.__new__(cls)
    vars(logger).update(attributes)
    return logger


def test_each_engine_has_its_line() -> None:
    loggers = {
        index: uninitialised(LoggingStatLogger, engine_index=index) for index in (0, 1)
    }
    adapter = uninitialised(PerEngineStatLoggerAdapter, per_engine_stat_loggers=loggers)
    manager: Any = SimpleNamespace(stat_loggers=[adapter])
    logger = MedusaStatLogger.beside(None, manager)  # type: ignore[arg-type]
    logger.record(recorded(observed(3)), None, engine_idx=1)
    logger.record(SchedulerStats(), None, engine_idx=0)
    logger.record(None, None, engine_idx=0)
    logs = [loggers[index].spec_decoding_logging for index in (0, 1)]
    assert [log.stats.num_trees for log in logs] == [0, 3]
    assert [log.prefix for log in logs] == ["Engine 000: ", "Engine 001: "]


def test_engines_may_share_a_line() -> None:
    upstream = uninitialised(
        AggregatedLoggingStatLogger, engine_index=-1, engine_indexes=[0, 1]
    )
    manager: Any = SimpleNamespace(stat_loggers=[upstream])
    logger = MedusaStatLogger.beside(None, manager)  # type: ignore[arg-type]
    logger.record(recorded(observed(3)), None, engine_idx=1)
    logger.record(recorded(observed(2)), None, engine_idx=0)
    assert upstream.spec_decoding_logging.stats.num_trees == 5
    assert upstream.spec_decoding_logging.prefix == "2 Engines Aggregated: "


def test_an_interval_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(interval_log, "time", clock)
    lines: list[str] = []

    def log(text: str, *arguments: object) -> None:
        lines.append(text % arguments)

    line = MedusaLogging("Engine 000: ")
    line.log(log)
    assert lines == []
    line.observe_medusa(observed(4))
    line.observe_medusa(observed(4, 2))
    now[0] = 2.0
    line.log(log)
    line.log(log)
    assert lines == [
        "Engine 000: Medusa: 2.50 tokens per tree, 5.0 nodes per tree, accepted by "
        "depth: 100.0% 50.0%, 4.0 trees/s"
    ]


def test_words() -> None:
    stats = observed(2, 0)
    assert describe(stats, 4.0) == (
        "1.00 tokens per tree, 5.0 nodes per tree, accepted by depth: none, 0.5 trees/s"
    )
    stats = MedusaStepStats()
    stats.observe_without_tree("load")
    stats.observe_without_tree("load")
    stats.observe_without_tree("prompt")
    assert describe(stats, 1.0) == "no trees, 3 without a tree (load 2, prompt 1)"
    parts = {"step": 0.1, "propose": 0.004, "move": 0.001, "draw": 0.03}
    stats.observe_parts(parts)
    assert describe(stats, 1.0) == (
        "no trees, own parts of a step: 5.0%, 3 without a tree (load 2, prompt 1)"
    )
