# SPDX-License-Identifier: Apache-2.0
"""Counts beside the scheduler: every token that a request gets, by the tree that it
came from or the reason why there was none."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_medusa.metrics.stats import MedusaStepStats
from vllm_medusa.request_options import max_nodes

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


@dataclass(frozen=True, slots=True)
class _Step:
    """A step under way.

    `reasons` holds the requests that get a token without a tree, `is_decode` whether
    no request computes any of its prompt, `start` when it was scheduled (seconds of a
    monotonic clock).
    """

    output: SchedulerOutput
    reasons: Mapping[str, str]
    is_decode: bool
    start: float


class StepObserver:
    """Counts the steps of one scheduler.

    Several may be under way at once; their results arrive in the order in which they
    were scheduled.

    Attributes:
        stats: what was observed since it was last taken.
    """

    def __init__(self, max_model_len: int, max_num_scheduled_tokens: int) -> None:
        self.stats = MedusaStepStats()
        self._max_model_len = max_model_len
        self._max_num_scheduled_tokens = max_num_scheduled_tokens
        # By request: nodes that its next step was to have, if it may have any.
        self._planned: dict[str, int] = {}
        self._steps: deque[_Step] = deque()
        self._reasons: Mapping[str, str] = {}
        # By request: nodes and accepted nodes of the tree whose tokens come next.
        self._trees: dict[str, tuple[int, int]] = {}
        self._last_result = 0.0

    def scheduled(
        self, start: float, output: SchedulerOutput, requests: Mapping[str, Request]
    ) -> None:
        """Take note of a step that has been scheduled.

        Args:
            start: when its scheduling began, by `time.perf_counter`.
            output: what the scheduler returned.
            requests: all requests by id.
        """
        drafts, planned = output.scheduled_spec_decode_tokens, self._planned
        for req_id in output.finished_req_ids:
            planned.pop(req_id, None)
        for req_id in output.preempted_req_ids or ():
            planned.pop(req_id, None)
        joining = placeholders(output)
        reasons: dict[str, str] = {}
        chunks = []
        for req_id in output.num_scheduled_tokens:
            if req_id in drafts and req_id not in joining:
                continue
            request = requests[req_id]
            if request.is_prefill_chunk:
                chunks.append(req_id)
            else:
                reasons[req_id] = self._reason(request, output)
        is_decode = bool(output.num_scheduled_tokens) and not chunks
        is_decode = is_decode and reasons.keys() <= planned.keys()
        planned.update(
            dict.fromkeys(
                output.num_scheduled_tokens, output.num_spec_tokens_to_schedule
            )
        )
        for req_id in chunks:
            del planned[req_id]
        self._steps.append(_Step(output, reasons, is_decode, start))

    def _reason(self, request: Request, output: SchedulerOutput) -> str:
        planned = self._planned.get(request.request_id)
        if planned is None:
            # The heads have seen no hidden state of this request yet, or not since.
            return "preempted" if request.num_output_tokens > 0 else "prompt"
        if max_nodes(request.sampling_params) == 0:
            return "request"
        if planned == 0:
            return "load"
        # By now the step's own token is counted as computed.
        if request.num_computed_tokens >= self._max_model_len - 1:
            return "max_model_len"
        is_full = output.total_num_scheduled_tokens >= self._max_num_scheduled_tokens
        if request.use_structured_output and not is_full:
            return "grammar"
        return "token_budget"

    def result_begins(
        self, output: SchedulerOutput, parts: Mapping[str, float] | None
    ) -> None:
        """Take note that a step's result is about to be counted.

        Args:
            output: of the step, as the scheduler returned it.
            parts: seconds by part of a step whose parts a worker has timed.
        """
        now = time.perf_counter()
        self._trees.clear()
        self._reasons = {}
        if parts is not None:
            self.stats.observe_parts(parts)
        if not any(step.output is output for step in self._steps):
            return
        while (step := self._steps.popleft()).output is not output:
            # Its result never came.
            pass
        self._reasons = step.reasons
        # Scheduled ahead, a step begins when the one before it ends.
        start = max(step.start, self._last_result)
        self._last_result = now
        if step.is_decode:
            has_trees = bool(output.scheduled_spec_decode_tokens)
            self.stats.observe_decode_step(now - start, has_trees)

    def has_tree(self, req_id: str) -> bool:
        """Whether the drafts of a request in this result were guesses, not
        placeholders."""
        return req_id not in self._reasons

    def verified(self, req_id: str, num_nodes: int, num_accepted: int) -> None:
        """Take note of a tree of this result."""
        self._trees[req_id] = num_nodes, num_accepted

    def emitted(self, req_id: str, num_tokens: int) -> None:
        """Count what a request got out of this result, of its tree if it had one."""
        if (tree := self._trees.pop(req_id, None)) is not None:
            self.stats.observe_tree(*tree, num_tokens)
        elif (reason := self._reasons.get(req_id)) is not None:
            self.stats.observe_without_tree(reason)

    def take(self) -> MedusaStepStats:
        """Return what was observed since the last call."""
        stats, self.stats = self.stats, MedusaStepStats()
        return stats


def placeholders(output: SchedulerOutput) -> Collection[str]:
    """Return the requests whose drafts are placeholders, for which nothing was guessed.

    vLLM pads a request that joins a batch with one token left to compute to the size
    of a tree, so that all requests of the batch have as many rows.
    """
    drafts = output.scheduled_spec_decode_tokens
    joining = [
        request.req_id
        for request in output.scheduled_new_reqs
        if request.req_id in drafts
    ]
    resumed = output.scheduled_cached_reqs.resumed_req_ids
    joining += [req_id for req_id in resumed if req_id in drafts]
    return frozenset(joining)
