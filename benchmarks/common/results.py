# SPDX-License-Identifier: Apache-2.0
"""Result files: one JSON object each, with what it was measured on."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_medusa.calibration.machine import describe_machine
from vllm_medusa.files import atomic_path

SCHEMA_VERSION = 1


def results_folder(device: str = "cpu") -> Path:
    """Where the repository keeps its measured results for a kind of device."""
    return Path(__file__).resolve().parents[1] / "results" / device


def command_line() -> str:
    """The command as typed; of an absolute path only the last part."""
    name = Path(sys.argv[0]).stem
    words = [re.sub(r"(?<![^=:])/\S*/", "", word) for word in sys.argv[1:]]
    return " ".join(["python", "-m", f"benchmarks.{name}", *words])


def write_result(path: Path, benchmark: str, content: Mapping[str, Any]) -> None:
    """Write a result with its provenance; a reader never meets half of one.

    ValueError if `content` holds a number that JSON has no word for.
    """
    document = {
        "schema": SCHEMA_VERSION,
        "benchmark": benchmark,
        "command": command_line(),
        "machine": describe_machine(),
        **content,
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n")
