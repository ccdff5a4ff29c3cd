# SPDX-License-Identifier: Apache-2.0
"""Write batch_table.json and show how it was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_medusa.calibration.machine import describe_machine
from vllm_medusa.calibration.table import BatchTable, StepCosts, speedups
from vllm_medusa.files import atomic_path


def write_batch_table(
    path: Path,
    table: BatchTable,
    costs: StepCosts,
    tokens_per_step: Mapping[int, float],
    settings: Mapping[str, Any],
) -> None:
    """Write the table with its provenance: machine, settings, costs, tokens."""
    document = {
        "num_speculative_tokens_per_batch_size": [list(entry) for entry in table],
        "machine": describe_machine(),
        "settings": dict(settings),
        "tokens_per_step": {
            str(nodes): round(value, 4) for nodes, value in tokens_per_step.items()
        },
        "step_seconds": {
            str(requests): {str(n): round(s, 6) for n, s in row.items()}
            for requests, row in costs.items()
        },
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")


def speedup_rows(
    costs: StepCosts, tokens_per_step: Mapping[int, float]
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of speed-ups, by requests and nodes."""
    counts = sorted(n for n in {n for row in costs.values() for n in row} if n)
    columns = ["requests", "plain ms", *(f"{n} nodes" for n in counts)]
    rows = []
    for requests, row in costs.items():
        gains = speedups(row, tokens_per_step)
        cells = [f"{gains[n]:.2f}" if n in gains else "-" for n in counts]
        rows.append([str(requests), f"{1000 * row[0]:.1f}", *cells])
    return columns, rows
