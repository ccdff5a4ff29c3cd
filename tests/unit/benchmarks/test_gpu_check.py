# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks.gpu.check` counts as proven, with engines that only pretend."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.gpu import check, exactness
from benchmarks.gpu.engines import Setup
from benchmarks.gpu.exactness import BEAM, PLAIN, PROMPTS, REJECTION, SAMPLING
from benchmarks.gpu.models import find_model
from vllm_medusa.engines.process import EngineError

SETUP = Setup("float32", True, 80 << 30)


class PretendEngine:
    """Answers every prompt with its place; `fault` changes or ends that."""

    def __init__(self, fault: str | None) -> None:
        self.fault = fault

    def call(self, job: str, **arguments: Any) -> Any:
        if job == "sync_check":
            armed = self.fault != "not armed"
            return {"armed": armed, "notices": armed}
        if self.fault == "dies":
            raise EngineError("GPU<->CPU sync detected")
        texts = [[index, 7, 8] for index in range(len(PROMPTS))]
        if self.fault == "other" and arguments["sampling"]["temperature"] == 0.7:
            texts[3] = [3, 7, 9]
        return texts


def pretend(monkeypatch: pytest.MonkeyPatch, faults: Mapping[str, str]) -> list[Any]:
    """Engines with `faults` by name; returns what was asked to start."""
    started = []

    def start(
        stack: object, options: Mapping[str, Any], environment: Mapping[str, str]
    ) -> tuple[dict[str, PretendEngine], dict[str, str]]:
        started.append((options, environment))
        running = {n: PretendEngine(faults.get(n)) for n in options}
        refused = {n: "no such kernel" for n in options if faults.get(n) == "refuses"}
        return {n: e for n, e in running.items() if n not in refused}, refused

    monkeypatch.setattr(exactness, "start", start)
    return started


def check_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Mapping[str, str]
) -> tuple[list[str], list[Any]]:
    """All three proofs over two implementations; problems, and what was started."""
    started = pretend(monkeypatch, faults)
    model = find_model("tiny", tmp_path)
    attentions = ["triton", "cascade"]
    content: dict[str, Any] = {"tests": {"exit_code": 0, "tests": 5}, "texts": {}}
    for dtype in ("float32", "bfloat16"):
        content["texts"][dtype] = exactness.check_texts(
            model, dtype, attentions, [True, False], SETUP, 16
        )
    content["synchronisation"] = exactness.check_synchronisation(
        model, attentions, SETUP, 16
    )
    return check.problems(content), started


def test_all_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, started = check_all(tmp_path, monkeypatch, {})
    assert found == []
    options, _ = started[0]
    assert len(options) == 1 + 2 * 2 + 1
    assert options[BEAM]["speculative_config"]["tree"] == "beam:4x3"
    assert "speculative_config" not in options[PLAIN]
    triton = options["triton, eager"]
    assert triton["enforce_eager"] and triton["dtype"] == "float32"
    assert triton["speculative_config"]["attention"] == "triton"
    assert not options["triton, CUDA graphs"]["enforce_eager"]
    options, environment = started[-1]
    assert options[REJECTION]["speculative_config"]["acceptance"] == "rejection"
    assert environment["VLLM_GPU_SYNC_CHECK"] == "error"


def test_other_texts_count_in_float32_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = check_all(tmp_path, monkeypatch, {"cascade, eager": "other"})
    assert found == ["cascade, eager: other texts with temperature 0.7"]


def test_a_refused_dtype_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("cascade, eager", "cascade, CUDA graphs", "cascade")
    found, _ = check_all(tmp_path, monkeypatch, dict.fromkeys(names, "refuses"))
    assert found == []
    every = ("triton, eager", "triton, CUDA graphs", BEAM, *names)
    found, _ = check_all(tmp_path, monkeypatch, dict.fromkeys(every, "refuses"))
    assert found == [
        "float32: no engine with Medusa ran",
        "bfloat16: no engine with Medusa ran",
    ]
    with pytest.raises(EngineError, match="no such kernel"):
        check_all(tmp_path, monkeypatch, {PLAIN: "refuses"})


def test_a_synchronising_step_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = check_all(tmp_path, monkeypatch, {"triton": "dies"})
    assert found == ["triton: a step synchronises:\nGPU<->CPU sync detected"]
    found, _ = check_all(tmp_path, monkeypatch, {"cascade": "not armed"})
    assert found == ["cascade: host synchronisation would not be noticed"]


def test_an_engine_that_dies_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = check_all(tmp_path, monkeypatch, {"triton, eager": "dies"})
    assert found == [
        "float32, triton, eager: GPU<->CPU sync detected",
        "bfloat16, triton, eager: GPU<->CPU sync detected",
    ]


def test_where_texts_part() -> None:
    assert exactness.first_difference([1, 2], [1, 2]) is None
    assert exactness.first_difference([1, 3], [1, 2]) == 1
    assert exactness.first_difference([1, 2], [1, 2, 3]) == 2
    assert all("seed" in way for name, way in SAMPLING.items() if name != "greedy")


def test_test_runs_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        seen.update(command=command, runner=options["env"]["MEDUSA_TEST_RUNNER"])
        report = next(w for w in command if w.startswith("--junitxml=")).split("=")[1]
        Path(report).write_text(
            '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">'
            '<testcase classname="a" name="good"/>'
            '<testcase classname="a" name="bad"><failure/></testcase>'
            "</testsuite></testsuites>"
        )
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", run)
    counts = check.run_tests(["-x"])
    assert counts["exit_code"] == 1
    assert (counts["tests"], counts["skipped"]) == (3, 1)
    assert counts["failed"] == ["a.bad"]
    assert seen["runner"] == "gpu" and seen["command"][-1] == "-x"
    empty = {"texts": {}, "synchronisation": {}, "tests": {"exit_code": 5, "tests": 0}}
    assert check.problems(empty)[0].startswith("tests: ")


def test_a_dry_run_writes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = check.parse_arguments(["--dry-run"])
    assert "results" not in arguments.output.parts
    monkeypatch.setattr(check, "find_model", lambda *_: find_model("tiny", tmp_path))
    monkeypatch.setattr(check, "check_texts", lambda *_: {"auto, eager": {}})
    output = tmp_path / "check.json"
    assert check.main(["--dry-run", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    assert content["tests"] is None and content["synchronisation"] == {}
    monkeypatch.setattr(check, "find_gpu", lambda: None)
    with pytest.raises(SystemExit, match="nvidia-smi finds no GPU"):
        check.main([])
