# SPDX-License-Identifier: Apache-2.0
"""Where `vllm-medusa calibrate` would measure something else, it measures nothing."""

from __future__ import annotations

import pytest
from vllm.platforms import current_platform

from vllm_medusa.cli.main import main


def test_refused_on_model_runner_v2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert main(["calibrate", "default", "default"]) == 2
    assert "calibrate measures on" in capsys.readouterr().err


def test_refused_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    assert main(["calibrate", "default", "default"]) == 2
    assert "benchmarks.gpu.bench" in capsys.readouterr().err
