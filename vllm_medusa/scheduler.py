# SPDX-License-Identifier: Apache-2.0
"""vLLM's schedulers, with trees cut to what their requests ask for.

An engine gets one of the two through vLLM's `scheduler_cls`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_medusa.metrics.observed_scheduling import ObservedScheduling
from vllm_medusa.orphans import end_with_parent
from vllm_medusa.request_options import max_nodes

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import DraftTokenIds
    from vllm.v1.request import Request


class MedusaScheduler(ObservedScheduling, Scheduler):
    """Cuts the tree of a request to the number of nodes that it asked for.

    Nodes are ordered best first, so that the first n are the best tree of n. Where the
    scheduler lives, in the engine's core, the engine also learns that its server died.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the last scheduled step: requests that asked for so many nodes at most.
        self._cut: list[tuple[Request, int]] = []
        end_with_parent()

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        """As `Scheduler._update_after_schedule`; under asynchronous scheduling that
        places the next step's drafts."""
        scheduled = scheduler_output.num_scheduled_tokens
        self._cut = [
            (request, limit)
            for req_id in scheduled
            if (request := self.requests[req_id]).sampling_params.extra_args
            and (limit := max_nodes(request.sampling_params)) is not None
        ]
        if self._cut and len(self._cut) == len(scheduled):
            # Nobody wants more guesses; with 0 no Medusa code runs.
            scheduler_output.num_spec_tokens_to_schedule = min(
                scheduler_output.num_spec_tokens_to_schedule,
                max(limit for _, limit in self._cut),
            )
        super()._update_after_schedule(scheduler_output)
        self._cut_trees()

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """As `Scheduler.update_draft_token_ids`, which takes the drafts of the step
        that has run."""
        super().update_draft_token_ids(draft_token_ids)
        self._cut_trees()

    def _cut_trees(self) -> None:
        for request, limit in self._cut:
            # Requests may share the list.
            request.spec_token_ids = request.spec_token_ids[:limit]


class MedusaAsyncScheduler(MedusaScheduler, AsyncScheduler):
    """The same where a step is scheduled while the last one runs."""
