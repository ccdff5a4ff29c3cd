# SPDX-License-Identifier: Apache-2.0
"""The places where a scheduler is observed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm_medusa.metrics.stats import MedusaSchedulerStats
from vllm_medusa.metrics.step_observer import StepObserver

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request


class ObservedScheduling:
    """Mixed in before vLLM's `Scheduler`; changes nothing of what is scheduled.

    Without statistics (`--disable-log-stats`) nothing is observed.
    """

    log_stats: bool
    requests: dict[str, Request]
    _observer: StepObserver | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.log_stats:
            self._observer = StepObserver(
                self.max_model_len,  # type: ignore[attr-defined]
                self.max_num_scheduled_tokens,  # type: ignore[attr-defined]
            )

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """As `Scheduler.schedule`."""
        start = time.perf_counter()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        if self._observer is not None:
            self._observer.scheduled(start, output, self.requests)
        return output

    def update_from_output(
        self,
        scheduler_output: SchedulerOutput,
        model_runner_output: ModelRunnerOutput,
    ) -> Any:
        """As `Scheduler.update_from_output`."""
        observer = self._observer
        if observer is None:
            return super().update_from_output(  # type: ignore[misc]
                scheduler_output, model_runner_output
            )
        observer.result_begins(scheduler_output, model_runner_output)
        results = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )
        observer.result_ends(scheduler_output, model_runner_output, results.values())
        for result in results.values():
            if (stats := result.scheduler_stats) is not None:
                medusa = observer.take()
                stats.spec_decoding_stats = medusa.speculation(
                    self.num_spec_tokens  # type: ignore[attr-defined]
                )
                result.scheduler_stats = MedusaSchedulerStats.of(stats, medusa)
                break
        return results

    def make_spec_decoding_stats(
        self,
        spec_decoding_stats: Any,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> None:
        """Count nothing: `update_from_output` does, for all requests at once and of
        guesses alone. Placeholders of a request that joins are no drafts.

        Without statistics vLLM counts nothing, either.
        """
