# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` with several ranks or replicas, as users start it."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, token_ids
from tests.engine.support.models import VOCAB_SIZE
from tests.engine.support.prompts import random_prompts
from tests.serving.support.processes import wait_for_end_of_all
from tests.serving.support.server import Server, serve

pytestmark = [
    pytest.mark.engine,
    pytest.mark.runner("v1", reason="servers do not depend on the runner"),
]

LENGTH = 24
SHORT = "--max-model-len=320"
READY_SECONDS = 600.0
"""Up to six processes import vLLM at a time."""
PROMPTS = random_prompts(12, VOCAB_SIZE, longest=60, seed=3)


@pytest.fixture(scope="module")
def plain(splittable: TinyModel) -> list[list[int]]:
    """What one plain engine answers."""
    with engine(splittable.path) as llm:
        return token_ids(generate(llm, PROMPTS, greedy(LENGTH)))


def ask_all(server: Server) -> list[list[int]]:
    """Ask for all prompts at once."""
    client = server.client()

    def ask(prompt: list[int]) -> list[int]:
        answer = client.completions.create(
            model=server.model,
            prompt=prompt,
            max_tokens=LENGTH,
            temperature=0.0,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        return answer.choices[0].token_ids  # type: ignore[attr-defined]

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(ask, PROMPTS))


def by_engine(server: Server, name: str) -> dict[str, float]:
    """A counter's value by engine."""
    text = server.get("/metrics").text
    lines = re.findall(rf"^{name}{{([^}}]*)}} (\S+)$", text, flags=re.MULTILINE)
    found = ((re.search(r'engine="(\d+)"', labels), value) for labels, value in lines)
    return {label[1]: float(value) for label, value in found if label}


@pytest.mark.slow
def test_two_replicas(
    splittable: TinyModel, plain: list[list[int]], tmp_path: Path
) -> None:
    """Two engines behind one router, and the metrics of each."""
    medusa = f"--speculative-model=medusa:{splittable.heads}?tree=optimal:6"
    log = tmp_path / "replicas.log"
    options = (medusa, SHORT, "--data-parallel-size=2", "--api-server-count=1")
    with serve(
        splittable.path, *options, log=log, ready_seconds=READY_SECONDS
    ) as server:
        assert ask_all(server) == plain
        end = time.monotonic() + 30
        while True:
            accepted = by_engine(server, "vllm:spec_decode_num_accepted_tokens_total")
            trees = by_engine(server, "vllm:spec_decode_num_drafts_total")
            if all(accepted.get(index) for index in "01") or time.monotonic() > end:
                break
            time.sleep(0.2)
        assert set(accepted) == set(trees) == {"0", "1"}
        assert min(accepted.values()) > 0
        assert min(trees.values()) > 0
        assert server.stop() == 0


@pytest.fixture
def ray_server(
    splittable: TinyModel, ray_folder: Path, tmp_path: Path
) -> Iterator[Server]:
    """Two ranks on Ray, where no cluster runs."""
    with serve(
        splittable.path,
        f"--speculative-model=medusa:{splittable.heads}?tree=optimal:6",
        SHORT,
        "--tensor-parallel-size=2",
        "--distributed-executor-backend=ray",
        log=tmp_path / "ray.log",
        ready_seconds=READY_SECONDS,
        environment={
            # Not any that other tests have started.
            "RAY_ADDRESS": "local",
            "RAY_TMPDIR": str(ray_folder),
            "RAY_AUTH_MODE": "disabled",
        },
    ) as server:
        yield server


def rays_own(folder: Path) -> list[psutil.Process]:
    """Ray's processes: the sessions of their servers lie below `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def ranks_of(server: Server) -> list[psutil.Process]:
    """The actors of a server's ranks, by the ids that its log gives."""
    pids = re.findall(r"RayCPUWorkerProc pid=(\d+)", server.log_text())
    return [psutil.Process(int(pid)) for pid in sorted(set(pids))]


@pytest.mark.slow
def test_killed_rank_on_ray(
    ray_server: Server, plain: list[list[int]], ray_folder: Path
) -> None:
    """A cluster of the server's own starts with it, and ends with it when a rank is
    lost: vLLM's clear error, and nothing left behind."""
    assert ask_all(ray_server) == plain
    daemons = rays_own(ray_folder)
    assert any("raylet" in process.name() for process in daemons)
    ranks = ranks_of(ray_server)
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    # vLLM's code for this is 0.
    ray_server.process.wait(90)
    assert "died unexpectedly" in ray_server.log_text()
    assert not wait_for_end_of_all(ray_server.process.pid)
    _, alive = psutil.wait_procs([*daemons, *ranks], timeout=60)
    assert not alive
