# SPDX-License-Identifier: Apache-2.0
"""What `vllm-medusa train` prints in the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def print_report(name: str, report: Mapping[str, Any]) -> None:
    """Print accuracies and tokens per step of one set of answers."""
    print(f"{name}, before loops ({report['positions_before_loops']} positions):")
    for head, row in enumerate(report["accuracy_before_loops"], start=1):
        tops = "  ".join(f"top-{n} {sum(row[:n]):.3f}" for n in (1, 2, 3, 5, 8))
        print(f"  head {head}: {tops}")
    steps = report["tokens_per_step_before_loops"]
    print("  tokens per step: ", end="")
    print(", ".join(f"{tree} {value:.2f}" for tree, value in steps.items()))
