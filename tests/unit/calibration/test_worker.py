# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

from vllm_medusa.calibration.worker import EXTENSION, ForcedNodes


class Runner:
    def execute_model(self, scheduler_output: Any, extra: str = "") -> tuple[int, str]:
        return scheduler_output.num_spec_tokens_to_schedule, extra


def run_step(worker: ForcedNodes, scheduled: int) -> tuple[int, str]:
    output = SimpleNamespace(num_spec_tokens_to_schedule=scheduled)
    return worker.model_runner.execute_model(output, extra="kept")


def make_worker() -> ForcedNodes:
    worker = ForcedNodes()
    worker.model_runner = Runner()
    return worker


def test_forces_the_number_of_nodes_until_told_otherwise() -> None:
    worker = make_worker()
    assert run_step(worker, 8) == (8, "kept")
    worker.force_nodes(3)
    assert run_step(worker, 8) == (3, "kept")
    worker.force_nodes(5)
    assert run_step(worker, 8) == (5, "kept")
    worker.force_nodes(0)
    assert run_step(worker, 8) == (0, "kept")
    worker.force_nodes(None)
    assert run_step(worker, 8) == (8, "kept")


def test_never_more_nodes_than_the_tree_has() -> None:
    worker = make_worker()
    worker.force_nodes(99)
    assert run_step(worker, 8) == (8, "kept")


def test_the_dotted_name_is_this_class() -> None:
    module, _, name = EXTENSION.rpartition(".")
    assert getattr(import_module(module), name) is ForcedNodes
