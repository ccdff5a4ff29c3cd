# SPDX-License-Identifier: Apache-2.0
"""The jobs of the GPU benchmarks in one real engine: a toy on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu.engine_worker import about, random_prompts, steps, sync_check
from benchmarks.gpu.models import find_model
from benchmarks.gpu.timings import compare, shares
from benchmarks.gpu.worker_probe import PROBE

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v1", reason="only the plumbing is tested, and V1 is faster"),
]


def test_jobs_in_an_engine(tmp_path: Path) -> None:
    """Step times, graphs and memory of a model with random weights and heads."""
    from tests.engine.support.engines import engine

    model = find_model("tiny", tmp_path)
    options = model.engine_arguments() | {"worker_extension_cls": PROBE}
    folder = options.pop("model")
    with engine(folder, model.medusa(8, "auto"), **options) as llm:
        visits = [steps(llm, batch=2, context=40, steps=6, warm_up=2) for _ in range(2)]
        told = about(llm)
        (counters,) = llm.collective_rpc("medusa_stats")
        timed = steps(llm, batch=1, context=40, steps=2, warm_up=1, timing=True)
        with pytest.raises(ValueError, match="VLLM_MEDUSA_TIMING must be 1"):
            shares(timed)
        assert sync_check(llm) == {"armed": False, "notices": False}
        assert not llm.llm_engine.has_unfinished_requests()
    assert all(visit["seconds"] > 0 and visit["parts"] is None for visit in visits)
    assert all(1.0 <= visit["tokens"] < 2.0 for visit in visits)
    # Seven nodes for each of two requests, in six steps of two visits at least.
    assert counters["nodes"] == 7 * counters["trees"] > 7 * 2 * 2 * 6
    assert told["graphs"] == {"mode": "NONE", "captured": []}
    assert told["memory"]["heads"] == 2 * model.head_bytes  # float32
    figures = compare(visits[:1], visits[1:])
    assert figures["overhead"]["median"] > 0


def test_prompts_are_the_same_every_time() -> None:
    prompts = random_prompts(512, 2, 50)
    assert prompts == random_prompts(512, 2, 50)
    assert prompts[0] != prompts[1]
    assert all(3 <= token < 512 for prompt in prompts for token in prompt)
    # A longer prompt starts as the shorter one does, for the prefix cache.
    assert random_prompts(512, 1, 80)[0][:50] == prompts[0]
