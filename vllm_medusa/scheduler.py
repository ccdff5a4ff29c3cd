# SPDX-License-Identifier: Apache-2.0
"""vLLM's schedulers, with trees cut to what their requests ask for.

An engine gets one of the two through vLLM's `scheduler_cls`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_medusa.metrics.observed_scheduling import ObservedScheduling
from vllm_medusa.request_options import max_nodes

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import DraftTokenIds
    from vllm.v1.request import Request


class MedusaScheduler(ObservedScheduling, Scheduler):
    """Cuts the tree of a request to the number of nodes that it asked for.

    Nodes are ordered best first, so that the first n are the best tree of n.
    """

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        """As `Scheduler._update_after_schedule`; under asynchronous scheduling that
        places the next step's drafts."""
        requests = [
            self.requests[req_id] for req_id in scheduler_output.num_scheduled_tokens
        ]
        scheduler_output.num_spec_tokens_to_schedule = useful_nodes(
            scheduler_output.num_spec_tokens_to_schedule, requests
        )
        super()._update_after_schedule(scheduler_output)
        for request in requests:
            _cut(request)

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """As `Scheduler.update_draft_token_ids`, which takes the drafts of the step
        that has run."""
        super().update_draft_token_ids(draft_token_ids)
        for req_id in draft_token_ids.req_ids:
            if (request := self.requests.get(req_id)) is not None:
                _cut(request)


class MedusaAsyncScheduler(MedusaScheduler, AsyncScheduler):
    """The same where a step is scheduled while the last one runs."""


def useful_nodes(num_nodes: int, requests: Iterable[Request]) -> int:
    """Return how many of `num_nodes` guesses the heads must make for a step's requests;
    with 0 no Medusa code runs."""
    limits = (max_nodes(request.sampling_params) for request in requests)
    return max(
        (num_nodes if n is None else min(n, num_nodes) for n in limits),
        default=num_nodes,
    )


def _cut(request: Request) -> None:
    limit = max_nodes(request.sampling_params)
    if limit is not None:
        # Requests may share the list.
        request.spec_token_ids = request.spec_token_ids[:limit]
