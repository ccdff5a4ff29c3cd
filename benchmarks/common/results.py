# SPDX-License-Identifier: Apache-2.0
"""Result files: one JSON object each, with what it was measured on."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_medusa.calibration.result_file import without_folders, write_result_file


def results_folder(device: str = "cpu") -> Path:
    """Where the repository keeps its measured results for a kind of device."""
    return Path(__file__).resolve().parents[1] / "results" / device


def command_line() -> str:
    """The command as typed; of an absolute path only the last part."""
    name = Path(sys.argv[0]).stem
    return f"python -m benchmarks.{name} {without_folders(sys.argv[1:])}".rstrip()


def write_result(path: Path, benchmark: str, content: Mapping[str, Any]) -> None:
    """Write a result with its provenance; a reader never meets half of one.

    ValueError if `content` holds a number that JSON has no word for.
    """
    write_result_file(path, {"benchmark": benchmark}, command_line(), content)
