# SPDX-License-Identifier: Apache-2.0
"""Medusa's statistics travel with vLLM's from the engine core to the front end."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from vllm_medusa import timing
from vllm_medusa.metrics import transport
from vllm_medusa.metrics.stats import (
    MedusaCounts,
    MedusaSchedulerStats,
    MedusaStepStats,
)


def observed() -> MedusaStepStats:
    stats = MedusaStepStats()
    stats.observe_trees(4, 2, 3)
    stats.observe_trees(4, 0, 1)
    stats.observe_without_tree("load")
    stats.observe_decode_step(0.25, True)
    stats.observe_parts({"step": 0.2, "propose": 0.01})
    return stats


def sent(stats: SchedulerStats | None) -> Any:
    """What a front end gets of an engine core in another process."""
    transport.install()
    encoded = MsgpackEncoder().encode(EngineCoreOutputs(scheduler_stats=stats))
    return MsgpackDecoder(EngineCoreOutputs).decode(encoded).scheduler_stats


def test_statistics_arrive() -> None:
    spec = SpecDecodingStats.new(4)
    spec.observe_draft(4, 2)
    upstream = SchedulerStats(num_running_reqs=3, spec_decoding_stats=spec)
    stats = sent(MedusaSchedulerStats.of(upstream, observed()))
    assert isinstance(stats, MedusaSchedulerStats)
    assert stats.medusa == observed()
    assert stats.num_running_reqs == 3
    assert stats.spec_decoding_stats == spec


def test_a_step_without_trees_has_none() -> None:
    """vLLM must not see a draft that was not."""
    stats = sent(MedusaSchedulerStats.of(SchedulerStats(), MedusaStepStats()))
    assert stats.medusa is None and stats.spec_decoding_stats is None


def test_engines_without_medusa_are_as_before() -> None:
    upstream = SchedulerStats(num_running_reqs=3, kv_cache_usage=0.5)
    stats = sent(upstream)
    assert isinstance(stats, MedusaSchedulerStats) and stats.medusa is None
    for name, value in vars(upstream).items():
        assert getattr(stats, name) == value
    assert sent(None) is None


def test_a_front_end_that_knows_no_medusa_reads_the_rest() -> None:
    encoded = MsgpackEncoder().encode(
        MedusaSchedulerStats.of(SchedulerStats(5), observed())
    )
    assert MsgpackDecoder(SchedulerStats).decode(encoded) == SchedulerStats(5)


def test_sums() -> None:
    stats = MedusaCounts()
    stats.add(observed())
    stats.add(observed())
    other = MedusaStepStats()
    other.observe_trees(4, 3, 4)
    stats.add(other)
    assert stats.tokens == {3: 2, 1: 2, 4: 1}
    assert stats.nodes == {4: 5} and stats.num_trees == 5
    assert stats.accepted == [3, 3, 1]
    assert stats.without_tree == {"load": 2}
    assert stats and not MedusaStepStats()


def test_as_vllm_counts() -> None:
    spec = SpecDecodingStats.new(6)
    stats = MedusaStepStats()
    for num_nodes, num_accepted in ((4, 2), (4, 0), (6, 3), (4, 2)):
        spec.observe_draft(num_nodes, num_accepted)
        stats.observe_trees(num_nodes, num_accepted, 1)
    assert stats.speculation(6) == spec
    assert MedusaStepStats().speculation(6) is None


def test_times_travel_with_a_runners_output() -> None:
    output = ModelRunnerOutput(req_ids=["a"], req_id_to_index={"a": 0})
    assert timing.parts_of(output) is None
    timing.attach({"step": 0.5}, output)
    assert timing.parts_of(pickle.loads(pickle.dumps(output))) == {"step": 0.5}  # noqa: S301
    assert timing.parts_of(EMPTY_MODEL_RUNNER_OUTPUT) is None


@pytest.mark.parametrize("accepted", range(3))
def test_depths(accepted: int) -> None:
    stats = MedusaStepStats()
    stats.observe_trees(2, accepted, 1, count=5)
    assert stats.accepted == [5] * accepted and stats.nodes == {2: 5}
