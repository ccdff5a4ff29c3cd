# SPDX-License-Identifier: Apache-2.0
"""Which runner a plain vLLM uses in this process: the tests run on both."""

from __future__ import annotations

import pytest
from vllm.triton_utils import HAS_TRITON
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine
from tests.runner import RUNNER

pytestmark = pytest.mark.engine

MODULES = {
    "v1": "vllm.v1.worker.cpu_model_runner",
    "v2": "vllm.v1.worker.cpu.model_runner",
}


@pytest.mark.smoke
def test_runner_is_the_one_asked_for(llama: TinyModel) -> None:
    """The package triton is installed in both processes; only "v2" makes use of it."""
    assert HAS_TRITON is (RUNNER == "v2")
    with engine(llama.path) as llm:
        (module,) = llm.collective_rpc(
            lambda worker: type(worker.model_runner).__module__
        )
    assert module == MODULES[RUNNER]


@pytest.mark.runner("v2", reason="a CPU's Model Runner V1 schedules synchronously")
@pytest.mark.parametrize("asked", [None, True, False])
def test_scheduler_is_that_of_a_gpu(llama: TinyModel, asked: bool | None) -> None:
    """Async unless it is switched off: the V2 tests run what a GPU would run."""
    options = {} if asked is None else {"async_scheduling": asked}
    with engine(llama.path, **options) as llm:
        core = llm.llm_engine.engine_core.engine_core
        assert isinstance(core.scheduler, AsyncScheduler) is (asked is not False)
        assert core.batch_queue_size == (1 if asked is False else 2)
