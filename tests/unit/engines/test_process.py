# SPDX-License-Identifier: Apache-2.0
"""The parent's side of an engine process, against a stand-in for the worker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vllm_medusa.engines import process
from vllm_medusa.engines.process import EngineError, EngineProcess

WORKER = """#!{python}
import json, os, sys, time
arguments = json.loads(sys.stdin.readline())
print("loading", os.environ["COLOUR"], file=sys.stderr)
if arguments.get("refuse"):
    print(json.dumps({{"refusal": "no such heads"}}), flush=True)
    sys.exit(2)
if arguments.get("die"):
    sys.exit(3)
print(json.dumps({{"result": {{"seconds": 1.5}}}}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if job["prompt"] == "fail":
        print(json.dumps({{"error": "ValueError: no"}}), flush=True)
    else:
        result = [sys.argv[2], job["job"], job["prompt"].upper(), os.getcwd()]
        print(json.dumps({{"result": result}}), flush=True)
if arguments.get("hang"):
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker"
    worker.write_text(WORKER.format(python=sys.executable))
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    monkeypatch.setattr(process, "SETTLE_SECONDS", 0.0)


def start(tmp_path: Path, **arguments: object) -> EngineProcess:
    log = tmp_path / "logs" / "engine.log"
    return EngineProcess(
        "plain", "some.worker", arguments, {"COLOUR": "teal"}, log, tmp_path
    )


def test_answers_and_log(tmp_path: Path) -> None:
    with start(tmp_path) as engine:
        assert engine.wait_until_ready() == 1.5
        assert engine.call("shout", prompt="hello") == [
            "some.worker",
            "shout",
            "HELLO",
            str(tmp_path),
        ]
        engine.finish()
    assert (tmp_path / "logs" / "engine.log").read_text() == "loading teal\n"


def test_a_death_shows_the_log(tmp_path: Path) -> None:
    with start(tmp_path, die=True) as engine, pytest.raises(EngineError) as error:
        engine.wait_until_ready()
    assert "'plain' ended without an answer" in str(error.value)
    assert "loading teal" in str(error.value)


def test_a_refusal_is_the_whole_message(tmp_path: Path) -> None:
    with start(tmp_path, refuse=True) as engine, pytest.raises(EngineError) as error:
        engine.wait_until_ready()
    assert str(error.value) == "no such heads"


def test_a_failed_answer_names_its_error(tmp_path: Path) -> None:
    with start(tmp_path) as engine:
        engine.wait_until_ready()
        with pytest.raises(EngineError, match="ValueError: no"):
            engine.call("shout", prompt="fail")


def test_an_engine_that_hangs_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_EXIT_SECONDS", 0.2)
    with start(tmp_path, hang=True) as engine:
        engine.wait_until_ready()
    assert engine._process.returncode == -9
