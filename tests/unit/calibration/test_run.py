# SPDX-License-Identifier: Apache-2.0
"""A calibration's engines: what is refused, and before what."""

from __future__ import annotations

from typing import Any

import pytest
import vllm

from tests.unit.calibration.test_result import SUMS
from vllm_medusa.calibration.options import CalibrationOptions
from vllm_medusa.calibration.probability_mass import MassSums
from vllm_medusa.calibration.run import Calibration, running_engine
from vllm_medusa.errors import ConfigError


def test_a_task_with_too_short_answers_is_refused_before_costs_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = MassSums([[0.0] * 3, [0.0] * 3], [1, 0])
    measured: Any = ([], {"math": SUMS, "trivia": short})
    monkeypatch.setattr(Calibration, "_measure_accuracies", lambda *_: measured)
    monkeypatch.setattr(Calibration, "_measure_costs", None)  # not called
    options: Any = CalibrationOptions(by_task=True)
    unused: Any = None
    calibration = Calibration("none", unused, None, options, unused, print)
    with pytest.raises(ConfigError, match="too short to measure head 2"):
        calibration.run([])


def test_what_vllm_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: Any) -> None:
        raise ValueError(f"dtype {arguments['dtype']} is unknown")

    monkeypatch.setattr(vllm, "LLM", refuse)
    message = "refuses the model tiny or an option: dtype int3 is unknown"
    with (
        pytest.raises(ConfigError, match=message),
        running_engine({"model": "tiny", "dtype": "int3"}),
    ):
        pass
