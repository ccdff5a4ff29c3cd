# SPDX-License-Identifier: Apache-2.0
"""Two ranks in worker processes (executor mp) answer as one rank does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from vllm import LLM
from vllm.v1.engine.exceptions import EngineDeadError

from tests.distributed.support.requests import (
    GREEDY,
    LENGTH,
    PROMPTS,
    SEEDED,
    STRUCTURED,
    TWO_RANKS,
    ask,
    by_scheme,
    exactly,
)
from tests.engine.conftest import TinyModel
from tests.engine.support.compare import answers
from tests.engine.support.engines import engine, generate, greedy, metrics
from tests.engine.support.grammars import CONFIG

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v1", reason="V2 has a test of its own, being slow"),
]

TREE = "optimal:8"
BLOCKS = 24
"""Of the KV cache: too few for all prompts and their answers."""
OPTIONS: dict[str, Any] = {**CONFIG, "num_gpu_blocks_override": BLOCKS}
SCHEMES = ("typical", "rejection")


def medusa(tiny: TinyModel) -> dict[str, Any]:
    return {"model": tiny.heads, "tree": TREE, "acceptance": "rejection"}


@pytest.fixture(scope="module")
def one_rank(splittable: TinyModel) -> dict[str, Any]:
    """Answers of plain vLLM, and by scheme of Medusa on one rank."""
    with engine(splittable.path, **OPTIONS) as llm:
        plain = {
            "greedy": answers(ask(llm, GREEDY)),
            "seeded": answers(ask(llm, SEEDED)),
            "structured": answers(ask(llm, STRUCTURED)),
        }
    with engine(splittable.path, medusa(splittable), **OPTIONS) as llm:
        schemes = {name: answers(ask(llm, by_scheme(name))) for name in SCHEMES}
    return plain | schemes


@pytest.fixture(scope="module")
def two_ranks(splittable: TinyModel, one_rank: dict[str, Any]) -> Iterator[LLM]:
    """The engine that is tested; the others have ended by then."""
    options = {**OPTIONS, **TWO_RANKS, "distributed_executor_backend": "mp"}
    with engine(splittable.path, medusa(splittable), **options) as llm:
        yield llm


def stats_of_all(llm: LLM) -> dict[str, Any]:
    """The counters, once it is clear that all ranks have the same."""
    first, second = llm.collective_rpc("medusa_stats")
    assert first == second
    return first


@pytest.mark.parametrize(
    ("kind", "params"),
    [("greedy", GREEDY), ("seeded", SEEDED), ("structured", STRUCTURED)],
)
def test_exact_acceptance(two_ranks, one_rank, kind, params):
    before = stats_of_all(two_ranks)["accepted"]
    assert answers(ask(two_ranks, exactly(params))) == one_rank[kind]
    assert stats_of_all(two_ranks)["accepted"] > before


@pytest.mark.parametrize("scheme", SCHEMES)
def test_other_schemes(two_ranks, one_rank, scheme):
    """Their noise is keyed by the seed: the same on one rank and on two."""
    before = stats_of_all(two_ranks)["accepted"]
    assert answers(ask(two_ranks, by_scheme(scheme))) == one_rank[scheme]
    assert stats_of_all(two_ranks)["accepted"] > before


def tokens_of_rank(worker: Any) -> list[list[int]]:
    """The texts as a rank has written them down itself, draw by draw."""
    tokens: list[list[int]] = worker.model_runner.input_batch.token_ids_cpu.tolist()
    return tokens


def test_unseeded(two_ranks):
    """Ranks draw the same without seeds: else they would go on with other texts."""
    params = greedy(LENGTH, temperature=1.0)
    texts = answers(generate(two_ranks, PROMPTS, params))
    assert all(len(text[0]["tokens"]) == LENGTH for text in texts)
    stats_of_all(two_ranks)
    first, second = two_ranks.collective_rpc(tokens_of_rank)
    assert first == second
    assert any(any(row) for row in first)


def test_preemption_and_cached_prefixes(two_ranks, one_rank):
    """Both occur at once: the cache has few blocks, and prompts come back."""
    before = metrics(two_ranks)["vllm:num_preemptions"]
    for _ in range(2):
        outputs = ask(two_ranks, exactly(GREEDY))
        assert answers(outputs) == one_rank["greedy"]
    assert metrics(two_ranks)["vllm:num_preemptions"] > before
    (again,) = generate(two_ranks, PROMPTS[-1:], exactly(GREEDY)[-1:])
    (cached,) = generate(two_ranks, PROMPTS[-1:], exactly(GREEDY)[-1:])
    assert cached.num_cached_tokens
    assert answers([cached]) == answers([again]) == one_rank["greedy"][-1:]


def test_killed_worker(two_ranks):
    """The last test of this engine: it does not live on with one rank."""
    pids = two_ranks.collective_rpc(lambda worker: os.getpid())
    workers = [psutil.Process(pid) for pid in pids]
    workers[1].send_signal(signal.SIGKILL)
    with pytest.raises((EngineDeadError, RuntimeError)):
        for _ in range(20):
            ask(two_ranks, GREEDY)
            time.sleep(0.5)
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert len(gone) == 2 and not alive
