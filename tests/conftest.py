# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests; they must stand before vLLM is imported."""

from __future__ import annotations

import os

import pytest

from tests import interpreter
from tests.runner import RUNNER

# What the helpers of the tests assert is explained as in the tests themselves.
pytest.register_assert_rewrite("tests.engine.support", "tests.serving.support")

_ENVIRONMENT = {
    # Engines run in the test's own process, one after another.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Bound threads of several processes would spin against each other.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
# Engines are given kv_cache_memory_bytes instead.
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
if RUNNER == "v2":
    interpreter.install()
elif RUNNER == "v1":
    for _name in interpreter.ENVIRONMENT:
        os.environ.pop(_name, None)


def pytest_report_header() -> str:
    return f"MEDUSA_TEST_RUNNER={RUNNER}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this process can't run, each with its reason."""
    for item in items:
        if reason := _reason_to_skip(item):
            item.add_marker(pytest.mark.skip(reason=reason))


def _reason_to_skip(item: pytest.Item) -> str | None:
    if item.get_closest_marker("gpu"):
        if RUNNER != "gpu":
            return "needs a GPU and MEDUSA_TEST_RUNNER=gpu"
        import torch

        return None if torch.cuda.is_available() else "needs a CUDA device"
    if RUNNER == "gpu":
        return "runs on the CPU"
    if item.get_closest_marker("interpreter") and RUNNER != "v2":
        return "needs Triton's interpreter: MEDUSA_TEST_RUNNER=v2"
    for marker in item.iter_markers("runner"):
        (name,) = marker.args
        if name != RUNNER:
            return f"only for runner {name}: {marker.kwargs['reason']}"
    return None
