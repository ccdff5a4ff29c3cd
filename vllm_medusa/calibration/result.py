# SPDX-License-Identifier: Apache-2.0
"""What a calibration found, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm_medusa.batch_table import TABLE_KEY
from vllm_medusa.calibration.machine import describe_machine
from vllm_medusa.calibration.options import CalibrationOptions
from vllm_medusa.calibration.probability_mass import MassSums
from vllm_medusa.calibration.table import BatchTable, StepCosts, speedups
from vllm_medusa.tree.accuracies import ACCURACY_KEY
from vllm_medusa.tree.builders import PATHS_KEY
from vllm_medusa.tree.token_tree import TokenTree


@dataclass(frozen=True)
class CalibrationResult:
    """The chosen trees and what they were chosen by.

    Attributes:
        table: nodes by number of running requests.
        tree: its first n nodes are the tree of n nodes; as many as the table's most.
        total: probability mass over all answers.
        by_task: probability mass and expected tokens per step by nodes, of each task.
        tokens_per_step: by nodes, 0 included; the accuracies' expectation at the height
            that was measured with most nodes.
        measured: that number of nodes, and its tokens per step.
        costs: step seconds by requests and nodes.
        options: what was asked for.
        threads: cores that the engine's threads were bound to, if any.
    """

    table: BatchTable
    tree: TokenTree
    total: MassSums
    by_task: Mapping[str, tuple[MassSums, Mapping[int, float]]]
    tokens_per_step: Mapping[int, float]
    measured: tuple[int, float]
    costs: StepCosts
    options: CalibrationOptions
    threads: str | None

    def as_dict(self) -> dict[str, Any]:
        """The content of calibration.json, see `vllm_medusa.calibration.stored`."""
        nodes, measured = self.measured
        settings = asdict(self.options)
        return {
            TABLE_KEY: [list(entry) for entry in self.table],
            PATHS_KEY: [list(path) for path in self.tree.paths],
            ACCURACY_KEY: self.total.table(),
            "num_positions": self.total.positions[0],
            "temperature": self.options.temperature,
            "by_task": {
                task: {
                    ACCURACY_KEY: sums.table(),
                    "num_positions": sums.positions[0],
                    "expected_tokens_per_step": _rounded(expected),
                }
                for task, (sums, expected) in self.by_task.items()
            },
            "tokens_per_step": _rounded(self.tokens_per_step),
            "measured": {"nodes": nodes, "tokens_per_step": round(measured, 4)},
            "step_seconds": {
                str(requests): {str(n): round(s, 6) for n, s in row.items()}
                for requests, row in self.costs.items()
            },
            "settings": settings | {"threads": self.threads},
            "machine": describe_machine() | _device(),
        }

    def speedup_rows(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of a table of speed-ups, by requests and nodes."""
        counts = sorted({n for row in self.costs.values() for n in row if n})
        columns = ["requests", "plain ms", *(f"{n} nodes" for n in counts)]
        rows = []
        for requests, row in self.costs.items():
            gains = speedups(row, self.tokens_per_step)
            cells = [f"{gains[n]:.2f}" if n in gains else "-" for n in counts]
            rows.append([str(requests), f"{1000 * row[0]:.1f}", *cells])
        return columns, rows


def _rounded(figures: Mapping[int, float]) -> dict[str, float]:
    return {str(nodes): round(value, 4) for nodes, value in figures.items()}


def _device() -> dict[str, str]:
    """The GPU's name, where there is one."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return {}
    return {"gpu": current_platform.get_device_name()}
