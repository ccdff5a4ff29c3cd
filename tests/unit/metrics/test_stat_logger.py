# SPDX-License-Identifier: Apache-2.0
"""Whose statistics are shown where, and the line in the log."""

from __future__ import annotations

import pickle
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
from vllm_medusa.metrics.interval_log import MedusaLogging
from vllm_medusa.metrics.stat_logger import MedusaStatLogger
from vllm_medusa.metrics.stats import MedusaSchedulerStats, MedusaStepStats


def observed(num_trees: int = 4, num_accepted: int = 1) -> MedusaStepStats:
    stats = MedusaStepStats()
    for _ in range(num_trees):
        stats.observe_trees(5, num_accepted, num_accepted + 1)
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
    assert [log.counts.num_trees for log in logs] == [0, 3]
    assert [log.prefix for log in logs] == ["Engine 000: ", "Engine 001: "]


def test_engines_may_share_a_line() -> None:
    upstream = uninitialised(
        AggregatedLoggingStatLogger, engine_index=-1, engine_indexes=[0, 1]
    )
    manager: Any = SimpleNamespace(stat_loggers=[upstream])
    logger = MedusaStatLogger.beside(None, manager)  # type: ignore[arg-type]
    logger.record(recorded(observed(3)), None, engine_idx=1)
    logger.record(recorded(observed(2)), None, engine_idx=0)
    assert upstream.spec_decoding_logging.counts.num_trees == 5
    assert upstream.spec_decoding_logging.prefix == "2 Engines Aggregated: "


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(seconds=0.0)
    clock.monotonic = lambda: clock.seconds
    monkeypatch.setattr(interval_log, "time", clock)
    return clock


def told(line: MedusaLogging) -> list[str]:
    lines: list[str] = []
    line.log(lambda text, *arguments: lines.append(text % arguments))
    return lines


def test_an_interval_is_told_once(now: SimpleNamespace) -> None:
    line = MedusaLogging("Engine 000: ")
    assert told(line) == []
    line.observe_medusa(observed(4))
    line.observe_medusa(observed(4, 2))
    now.seconds = 2.0
    assert told(line) == [
        "Engine 000: Medusa: 2.50 tokens per tree, 5.0 nodes per tree, accepted by "
        "depth: 100.0% 50.0%, 4.0 trees/s"
    ]
    assert told(line) == []


def test_words(now: SimpleNamespace) -> None:
    line = MedusaLogging()
    line.observe_medusa(observed(2, 0))
    now.seconds = 4.0
    assert told(line) == [
        "Medusa: 1.00 tokens per tree, 5.0 nodes per tree, accepted by depth: none, "
        "0.5 trees/s"
    ]
    stats = MedusaStepStats()
    stats.observe_without_tree("load", 2)
    stats.observe_without_tree("prompt")
    line.observe_medusa(stats)
    assert told(line) == ["Medusa: no trees, 3 without a tree (load 2, prompt 1)"]
    parts = {"step": 0.1, "propose": 0.004, "move": 0.001, "draw": 0.03}
    stats.observe_parts(parts)
    stats.observe_parts({"step": 0.1})
    line.observe_medusa(stats)
    assert told(line) == [
        "Medusa: no trees, own parts of a step: 2.5%, 3 without a tree (load 2, "
        "prompt 1)"
    ]
    # The share is the interval's own.
    line.observe_medusa(observed(1))
    assert "own parts" not in told(line)[0]


def test_an_interval_that_never_ends_takes_no_room() -> None:
    """As with a library's engine of which nobody asks for the log."""
    stats = observed(3)
    stats.observe_without_tree("load")
    stats.observe_decode_step(0.1, True)
    stats.observe_parts({"step": 0.1, "propose": 0.004})
    line = MedusaLogging()
    line.observe_medusa(stats)
    size = len(pickle.dumps(vars(line)))
    for _ in range(50):
        line.observe_medusa(stats)
    assert line.counts.num_trees == 153
    assert len(pickle.dumps(vars(line))) == size
