# SPDX-License-Identifier: Apache-2.0
"""Where a front end hands over what its engines have observed."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import (
    AggregatedLoggingStatLogger,
    AggregateStatLoggerBase,
    LoggingStatLogger,
    PerEngineStatLoggerAdapter,
    PrometheusStatLogger,
    StatLoggerManager,
)

from vllm_medusa.metrics.interval_log import MedusaLogging
from vllm_medusa.metrics.prometheus import MedusaPrometheus
from vllm_medusa.metrics.stats import MedusaSchedulerStats

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import SchedulerStats


def install() -> None:
    """Give every front end of an engine with Medusa a logger of ours.

    vLLM's entry point for loggers (`vllm.stat_logger_plugins`) is not for this: a
    plugin there switches the statistics of every server on, `--disable-log-stats` or
    not, and `LLM` does not load it.
    """
    upstream = StatLoggerManager.__init__

    @functools.wraps(upstream)
    def init(
        self: StatLoggerManager, vllm_config: VllmConfig, *args: Any, **kwargs: Any
    ) -> None:
        upstream(self, vllm_config, *args, **kwargs)
        from vllm_medusa.engine_config import is_medusa

        speculative = vllm_config.speculative_config
        if speculative is not None and is_medusa(speculative):
            self.stat_loggers.append(MedusaStatLogger.beside(vllm_config, self))

    StatLoggerManager.__init__ = init


class MedusaStatLogger(AggregateStatLoggerBase):
    """Records Medusa's statistics of all engines of a front end."""

    def __init__(
        self, prometheus: MedusaPrometheus | None, logs: Mapping[int, MedusaLogging]
    ) -> None:
        """`logs` has the log line of each engine whose statistics are logged."""
        self._prometheus = prometheus
        self._logs = logs

    @classmethod
    def beside(
        cls, vllm_config: VllmConfig, manager: StatLoggerManager
    ) -> MedusaStatLogger:
        """Return one that shows what vLLM's own loggers of a front end leave out."""
        prometheus = None
        for stat_logger in manager.stat_loggers:
            if isinstance(stat_logger, PrometheusStatLogger):
                prometheus = MedusaPrometheus(stat_logger, *_tree_limits(vllm_config))
                break
        logs = {}
        for engines, stat_logger in _logging(manager.stat_loggers):
            log = MedusaLogging(stat_logger.log_prefix)
            stat_logger.spec_decoding_logging = log
            logs.update(dict.fromkeys(engines, log))
        return cls(prometheus, logs)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Add what an engine has observed in a step."""
        if not isinstance(scheduler_stats, MedusaSchedulerStats):
            return
        stats = scheduler_stats.medusa
        if stats is None:
            return
        if self._prometheus is not None:
            self._prometheus.observe(stats, engine_idx)
        if engine_idx in self._logs:
            self._logs[engine_idx].observe_medusa(stats)

    def log_engine_initialized(self) -> None:
        """Log nothing: vLLM's logger and the worker have told what there is."""


def _tree_limits(vllm_config: VllmConfig) -> tuple[int, int]:
    """Return the largest number of nodes of a tree, and its depth."""
    from vllm_medusa.engine_config import medusa_config, scheduled_tree
    from vllm_medusa.tree import BeamTree

    tree = scheduled_tree(vllm_config)
    beam = BeamTree.parse(medusa_config(vllm_config).tree)
    # A beam's size is that of the tree which requests with a grammar have.
    return tree.num_nodes, max(tree.max_depth, 0 if beam is None else beam.depth)


def _logging(
    stat_loggers: Sequence[AggregateStatLoggerBase],
) -> Iterator[tuple[list[int], LoggingStatLogger]]:
    """Yield the loggers that print, each with the engines that it prints of."""
    for stat_logger in stat_loggers:
        if isinstance(stat_logger, AggregatedLoggingStatLogger):
            yield stat_logger.engine_indexes, stat_logger
        elif isinstance(stat_logger, PerEngineStatLoggerAdapter):
            for engine, own in stat_logger.per_engine_stat_loggers.items():
                if isinstance(own, LoggingStatLogger):
                    yield [engine], own
