# SPDX-License-Identifier: Apache-2.0
"""A tree of fewer nodes than the engine was started with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm_medusa.evaluation.trees import ChangingTrees


class Runner:
    def execute_model(self, scheduler_output: Any, extra: str = "") -> tuple[int, str]:
        return scheduler_output.num_spec_tokens_to_schedule, extra


def test_cuts_to_the_last_number_and_never_asks_for_more() -> None:
    worker = ChangingTrees()
    worker.model_runner = Runner()
    for nodes, drafted in ((3, 3), (5, 5), (99, 8), (0, 0)):
        worker._cut(nodes)
        output = SimpleNamespace(num_spec_tokens_to_schedule=8)
        assert worker.model_runner.execute_model(output, extra="kept") == (
            drafted,
            "kept",
        )
