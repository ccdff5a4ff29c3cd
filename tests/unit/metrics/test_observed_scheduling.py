# SPDX-License-Identifier: Apache-2.0
"""What a scheduler's statistics hold besides vLLM's own."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats

from tests.unit.metrics.steps import Request, results, scheduled
from vllm_medusa.metrics.observed_scheduling import ObservedScheduling
from vllm_medusa.metrics.stats import MedusaSchedulerStats

STEP = scheduled({"a": 5, "b": 5}, {"a": 4, "b": 4}, new=("b",))
SPECULATION = {
    "num_draft_tokens": 4,
    "num_accepted_tokens": 2,
    "num_invalid_spec_tokens": None,
}


class Upstream:
    """The part of vLLM's scheduler that is observed; "b" has placeholders."""

    max_model_len = 100
    max_num_scheduled_tokens = 64
    num_spec_tokens = 4

    def __init__(self, log_stats: bool) -> None:
        self.log_stats = log_stats
        self.requests = {"a": Request("a"), "b": Request("b", num_output_tokens=0)}

    def schedule(self) -> Any:
        return STEP

    def update_from_output(self, output: Any, runner: Any) -> dict[int, Any]:
        stats: Any = None
        for req_id in output.scheduled_spec_decode_tokens:
            stats = self.make_spec_decoding_stats(  # type: ignore[attr-defined]
                stats, request_id=req_id, **SPECULATION
            )
        assert stats is None, "observed at once, not one by one"
        _, (result,) = results({"a": 3, "b": 1})
        empty = EngineCoreOutputs()
        if self.log_stats:
            empty.scheduler_stats = SchedulerStats(num_running_reqs=2)
        return {0: empty, 1: result}


class Observed(ObservedScheduling, Upstream):
    pass


@pytest.mark.parametrize("log_stats", [True, False])
def test_guesses_alone_are_drafts(log_stats: bool) -> None:
    scheduler = Observed(log_stats)
    runner, _ = results({"a": 3, "b": 1})
    returned = scheduler.update_from_output(scheduler.schedule(), runner)
    assert list(returned) == [0, 1] and returned[1].scheduler_stats is None
    stats = returned[0].scheduler_stats
    if not log_stats:
        assert stats is None
        return
    assert isinstance(stats, MedusaSchedulerStats) and stats.num_running_reqs == 2
    assert stats.medusa is not None and stats.spec_decoding_stats is not None
    assert stats.medusa.tokens == {3: 1}
    assert stats.medusa.without_tree == {"prompt": 1}
    assert vars(stats.spec_decoding_stats) == {
        "num_spec_tokens": 4,
        "num_drafts": 1,
        "num_draft_tokens": 4,
        "num_accepted_tokens": 2,
        "num_accepted_tokens_per_pos": [1, 1, 0, 0],
        "num_draft_tokens_per_pos": [1, 1, 1, 1],
    }
    assert returned[1].outputs == results({"a": 3, "b": 1})[1][0].outputs
