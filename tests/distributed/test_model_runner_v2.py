# SPDX-License-Identifier: Apache-2.0
"""Two ranks of Model Runner V2, as on GPUs: each keeps its drafts to itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM

from tests import interpreter
from tests.distributed.support.requests import PROMPTS, TWO_RANKS
from tests.engine.conftest import TinyModel
from tests.engine.support.compare import answers
from tests.engine.support.engines import engine, generate, greedy

pytestmark = [
    pytest.mark.engine,
    pytest.mark.interpreter,
]

ROOT = Path(__file__).parents[2]
AT_START = """
import tests.interpreter
tests.interpreter.install()
"""
LENGTH = 10
PARAMS = [
    greedy(LENGTH),
    greedy(LENGTH, temperature=0.9, seed=5),
    greedy(LENGTH, temperature=0.9, seed=6, extra_args={"medusa_acceptance": "exact"}),
]


@pytest.fixture(scope="module")
def interpreted_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let processes that start from here on switch to the interpreter, too."""
    assert interpreter.is_installed()
    folder = tmp_path_factory.mktemp("start")
    (folder / "sitecustomize.py").write_text(AT_START)
    found = os.environ.get("PYTHONPATH")
    paths = [str(folder), str(ROOT), *([found] if found else [])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        # vLLM compiles the lookup of a divided embedding, and the compiler asks the
        # stand-in back end for what it has not.
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        yield


def ask(llm: LLM) -> list[Any]:
    return answers(generate(llm, PROMPTS[: len(PARAMS)], PARAMS))


@pytest.mark.parametrize(
    ("tree", "acceptance"),
    [
        ("beam:3x2", "exact"),
        pytest.param("optimal:6", "rejection", marks=pytest.mark.slow),
    ],
)
def test_same_as_one_rank(
    splittable: TinyModel,
    interpreted_workers: None,
    tree: str,
    acceptance: str,
) -> None:
    medusa = {"model": splittable.heads, "tree": tree, "acceptance": acceptance}
    with engine(splittable.path, medusa) as llm:
        expected = ask(llm)
    options = {**TWO_RANKS, "distributed_executor_backend": "mp"}
    with engine(splittable.path, medusa, **options) as llm:
        assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling
        assert ask(llm) == expected
        runners = llm.collective_rpc(
            lambda worker: type(worker.model_runner).__module__
        )
        assert runners == ["vllm_medusa.runner.v2.model_runner"] * 2
        first, second = llm.collective_rpc("medusa_stats")
        assert first == second
        assert first["accepted"] > 0
