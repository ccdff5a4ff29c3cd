# SPDX-License-Identifier: Apache-2.0
"""One server with Medusa and one without, for all tests of a worker process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import TinyModel, make_tiny_model
from tests.serving.support.server import MAX_MODEL_LEN, Server, serve

TREE = "optimal:8"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A tiny model with heads that are right often enough."""
    folder = tmp_path_factory.mktemp("served")
    return make_tiny_model("llama", folder, max_position_embeddings=MAX_MODEL_LEN)


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where servers write their logs."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def medusa_server(tiny_model: TinyModel, logs: Path) -> Iterator[Server]:
    """`vllm serve --speculative-model medusa:HEADS`."""
    with serve(
        tiny_model.path,
        f"--speculative-model=medusa:{tiny_model.heads}?tree={TREE}",
        # Answers tell of their cached tokens and of each of their trees.
        "--enable-prompt-tokens-details",
        "--per-request-spec-decode-metrics=detailed",
        log=logs / "medusa.log",
        environment={"VLLM_LOG_STATS_INTERVAL": "1"},
    ) as server:
        yield server


@pytest.fixture(scope="session")
def plain_server(tiny_model: TinyModel, logs: Path) -> Iterator[Server]:
    """`vllm serve` without Medusa, its worker inside the engine's process."""
    with serve(
        tiny_model.path,
        "--enable-prompt-tokens-details",
        "--distributed-executor-backend=uni",
        log=logs / "plain.log",
        # Else the CPU platform starts a worker process all the same.
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    ) as server:
        yield server
