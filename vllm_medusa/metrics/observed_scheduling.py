# SPDX-License-Identifier: Apache-2.0
"""The places where a scheduler is observed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm_medusa.metrics.stats import MedusaSchedulerStats
from vllm_medusa.metrics.step_observer import StepObserver
from vllm_medusa.timing import parts_of

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
        if self._observer is not None:
            parts = parts_of(model_runner_output)
            self._observer.result_begins(scheduler_output, parts)
        return super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )

    def make_spec_decoding_stats(
        self,
        spec_decoding_stats: Any,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> Any:
        """As `Scheduler.make_spec_decoding_stats`, of guesses alone: placeholders of a
        request that joins are no drafts."""
        if self._observer is not None:
            if not self._observer.has_tree(request_id):
                return spec_decoding_stats
            num_invalid = (num_invalid_spec_tokens or {}).get(request_id, 0)
            self._observer.verified(
                request_id, num_draft_tokens - num_invalid, num_accepted_tokens
            )
        return super().make_spec_decoding_stats(  # type: ignore[misc]
            spec_decoding_stats,
            num_draft_tokens=num_draft_tokens,
            num_accepted_tokens=num_accepted_tokens,
            num_invalid_spec_tokens=num_invalid_spec_tokens,
            request_id=request_id,
        )

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], *args: Any, **kwargs: Any
    ) -> tuple[list[int], bool]:
        """As `Scheduler._update_request_with_output`, which drops the tokens behind a
        request's end."""
        tokens, stopped = super()._update_request_with_output(  # type: ignore[misc]
            request, new_token_ids, *args, **kwargs
        )
        if self._observer is not None:
            self._observer.emitted(request.request_id, len(tokens))
        return tokens, stopped

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """As `Scheduler.make_stats`, with Medusa's."""
        stats = super().make_stats(*args, **kwargs)  # type: ignore[misc]
        if stats is None or self._observer is None:
            return stats
        return MedusaSchedulerStats.of(stats, self._observer.take())
