# SPDX-License-Identifier: Apache-2.0
"""The engine's side, in a process of its own with a stand-in for vLLM."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_medusa.engines import process
from vllm_medusa.engines.process import EngineError, EngineProcess

VLLM = """
class LLM:
    def __init__(self, model, refuse=False):
        print("vLLM prints what it likes")
        if refuse:
            from vllm_medusa.errors import ConfigError
            raise ConfigError("no such heads")
        self.model, self.warm = model, False
"""

WORKER = """
from vllm_medusa.engines.jobs import serve

def describe(llm, times):
    return [llm.model, llm.warm] * times

def warm_up(llm):
    llm.warm = True

serve({"describe": describe}, warm_up)
"""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SETTLE_SECONDS", 0.0)


def start(folder: Path, **arguments: object) -> EngineProcess:
    (folder / "vllm.py").write_text(VLLM)
    (folder / "stand_in.py").write_text(WORKER)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    log = folder / "engine.log"
    return EngineProcess("engine", "stand_in", arguments, {"PYTHONPATH": path}, log)


def test_jobs_are_done_after_the_warm_up(tmp_path: Path) -> None:
    with start(tmp_path, model="m") as engine:
        assert engine.wait_until_ready() >= 0
        assert engine.call("describe", times=1) == ["m", True]
        assert engine.call("describe", times=2) == ["m", True] * 2
    assert "vLLM prints what it likes" in (tmp_path / "engine.log").read_text()


def test_bad_input_is_a_refusal_without_the_log(tmp_path: Path) -> None:
    with (
        start(tmp_path, model="m", refuse=True) as engine,
        pytest.raises(EngineError) as error,
    ):
        engine.wait_until_ready()
    assert str(error.value) == "no such heads"


@pytest.mark.parametrize(
    ("job", "message"),
    [("describe", "failed with TypeError"), ("juggle", "failed with KeyError")],
)
def test_a_failed_job_names_its_error_and_ends_the_engine(
    tmp_path: Path, job: str, message: str
) -> None:
    with start(tmp_path, model="m") as engine:
        engine.wait_until_ready()
        with pytest.raises(EngineError, match=message) as error:
            engine.call(job)
        assert "Traceback" in str(error.value)
        with pytest.raises(EngineError, match="ended"):
            engine.call("describe", times=1)
