# SPDX-License-Identifier: Apache-2.0
"""Which runner a plain vLLM uses in this process: the tests run on both."""

from __future__ import annotations

import pytest
from vllm.triton_utils import HAS_TRITON

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine
from tests.runner import RUNNER

pytestmark = [pytest.mark.engine, pytest.mark.smoke]

MODULES = {
    "v1": "vllm.v1.worker.cpu_model_runner",
    "v2": "vllm.v1.worker.cpu.model_runner",
}


def test_runner_is_the_one_asked_for(llama: TinyModel) -> None:
    """The package triton is installed in both processes; only "v2" makes use of it."""
    assert HAS_TRITON is (RUNNER == "v2")
    with engine(llama.path) as llm:
        (module,) = llm.collective_rpc(
            lambda worker: type(worker.model_runner).__module__
        )
    assert module == MODULES[RUNNER]
