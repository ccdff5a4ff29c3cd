# SPDX-License-Identifier: Apache-2.0
"""Counts beside the scheduler: every token that a request gets, by the tree that it
came from or the reason why there was none."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from operator import sub
from typing import TYPE_CHECKING

from vllm_medusa.metrics.stats import MedusaStepStats
from vllm_medusa.request_options import max_nodes
from vllm_medusa.timing import parts_of

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
    from vllm.v1.outputs import ModelRunnerOutput
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
    were scheduled. Nothing is done request by request that can be done for a step at
    once: at 256 requests a call for each takes longer than all the rest.

    Attributes:
        stats: what was observed since it was last taken.
    """

    def __init__(self, max_model_len: int, max_num_scheduled_tokens: int) -> None:
        self.stats = MedusaStepStats()
        self._max_model_len = max_model_len
        self._max_num_scheduled_tokens = max_num_scheduled_tokens
        # By request: nodes that its next step was to have, if it may have any.
        self._planned: dict[str, int] = {}
        # Of those planned to have none: why.
        self._treeless: dict[str, str] = {}
        self._steps: deque[_Step] = deque()
        # Of the result that is being counted.
        self._reasons: Mapping[str, str] = {}
        self._num_sampled: list[int] = []
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
        planned, treeless = self._planned, self._treeless
        for req_id in (*output.finished_req_ids, *(output.preempted_req_ids or ())):
            planned.pop(req_id, None)
            treeless.pop(req_id, None)
        reasons, rest = self._known_reasons(output)
        is_decode = bool(output.num_scheduled_tokens)
        chunks = []
        for req_id in rest:
            request = requests[req_id]
            is_decode = is_decode and req_id in planned
            if request.is_prefill_chunk:
                chunks.append(req_id)
            else:
                reasons[req_id] = self._reason(request, output)
        self._plan(output, requests)
        for req_id in chunks:
            is_decode = False
            del planned[req_id]
            treeless.pop(req_id, None)
        self._steps.append(_Step(output, reasons, is_decode, start))

    def _known_reasons(
        self, output: SchedulerOutput
    ) -> tuple[dict[str, str], Collection[str]]:
        """Return reasons that were known before, maybe of requests that are not in the
        step, and the requests without a tree that are to be looked at."""
        drafts = output.scheduled_spec_decode_tokens
        num_scheduled, treeless = output.num_scheduled_tokens, self._treeless
        if not drafts:
            rest = num_scheduled.keys() - treeless.keys()
            num_known = len(num_scheduled) - len(rest)
            num_tokens = sum(map(num_scheduled.__getitem__, rest))
            if output.total_num_scheduled_tokens - num_tokens == num_known:
                return treeless.copy(), rest
            # One of those that had a token per step computes its text anew.
            return {}, num_scheduled
        joining = placeholders(output)
        if len(drafts) == len(num_scheduled):
            return {}, joining
        return {}, [r for r in num_scheduled if r not in drafts or r in joining]

    def _plan(self, output: SchedulerOutput, requests: Mapping[str, Request]) -> None:
        """Take note of the trees that the step's requests are to have next."""
        num_nodes = output.num_spec_tokens_to_schedule
        if num_nodes > 0:
            self._treeless.clear()
            self._planned.update(dict.fromkeys(output.num_scheduled_tokens, num_nodes))
            return
        for req_id in output.num_scheduled_tokens.keys() - self._treeless.keys():
            self._planned[req_id] = 0
            is_off = max_nodes(requests[req_id].sampling_params) == 0
            self._treeless[req_id] = "request" if is_off else "load"

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
        self, output: SchedulerOutput, runner_output: ModelRunnerOutput
    ) -> None:
        """Take note of a step's result before vLLM cuts its tokens at requests' ends.

        Args:
            output: of the step, as the scheduler returned it.
            runner_output: of the worker.
        """
        now = time.perf_counter()
        self._reasons = {}
        self._num_sampled = list(map(len, runner_output.sampled_token_ids))
        if (parts := parts_of(runner_output)) is not None:
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

    def result_ends(
        self,
        output: SchedulerOutput,
        runner_output: ModelRunnerOutput,
        results: Iterable[EngineCoreOutputs],
    ) -> None:
        """Count what the requests got out of the result that has begun.

        Args:
            output: of the step, as the scheduler returned it.
            runner_output: of the worker.
            results: what goes to the front ends.
        """
        drafts, reasons = output.scheduled_spec_decode_tokens, self._reasons
        for result in results:
            # Without tokens: requests that ended for another reason.
            outputs = [out for out in result.outputs if out.new_token_ids]
            if reasons:
                counts = Counter([reasons.get(out.request_id) for out in outputs])
                for reason, count in counts.items():
                    if reason is not None:
                        self.stats.observe_without_tree(reason, count)
            if drafts:
                trees = [
                    out
                    for out in outputs
                    if out.request_id in drafts and out.request_id not in reasons
                ]
                self._count_trees(output, runner_output, trees)

    def _count_trees(
        self,
        output: SchedulerOutput,
        runner_output: ModelRunnerOutput,
        outputs: list[EngineCoreOutput],
    ) -> None:
        req_ids = [out.request_id for out in outputs]
        drafts = output.scheduled_spec_decode_tokens
        num_nodes = map(len, map(drafts.__getitem__, req_ids))
        if invalid := output.num_invalid_spec_tokens:
            excluded = [invalid.get(req_id, 0) for req_id in req_ids]
            num_nodes = map(sub, num_nodes, excluded)
        rows = map(runner_output.req_id_to_index.__getitem__, req_ids)
        num_sampled = map(self._num_sampled.__getitem__, rows)
        num_tokens = [len(out.new_token_ids) for out in outputs]
        trees = Counter(zip(num_nodes, num_sampled, num_tokens, strict=True))
        for (nodes, sampled, tokens), count in trees.items():
            # The token behind the accepted nodes is none of them.
            self.stats.observe_trees(nodes, sampled - 1, tokens, count)

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
