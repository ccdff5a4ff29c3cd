# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.figures import Summary
from vllm_medusa.calibration.machine import others_share

# Wide enough for every column when the output goes into a file.
_WIDTH = 130
# Cores; what vLLM's own idle processes and the system take stays well below.
_BUSY = 0.1


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """A titled table, first column left, all others right aligned."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def print_speedups(summaries: Sequence[Summary]) -> None:
    """Per concurrency: tokens/s, tokens per step, overhead and speed-up by variant."""
    for kind, concurrency in dict.fromkeys(
        (s.answers, s.concurrency) for s in summaries
    ):
        rows = [
            [
                s.variant,
                str(s.tokens_per_second),
                f"{s.tokens_per_step:.2f}",
                "-" if s.step_milliseconds is None else f"{s.step_milliseconds:.1f}",
                "-" if s.overhead is None else str(s.overhead),
                str(s.speedup),
                str(s.mismatches),
            ]
            for s in summaries
            if (s.answers, s.concurrency) == (kind, concurrency)
        ]
        print_table(
            f"{kind} answers, concurrency {concurrency} (median, min-max of repeats)",
            [
                "variant",
                "tokens/s",
                "tokens/step",
                "step ms",
                "overhead",
                "speed-up",
                "other texts",
            ],
            rows,
        )


def print_categories(summaries: Sequence[Summary]) -> None:
    """Speed-up by MT-bench category at the lowest concurrency measured."""
    lowest = min(s.concurrency for s in summaries)
    chosen = [s for s in summaries if s.concurrency == lowest]
    categories = list(chosen[0].speedup_by_category)
    print_table(
        f"speed-up by category, concurrency {lowest}",
        ["variant", "answers", *categories],
        [
            [s.variant, s.answers]
            + [f"{s.speedup_by_category[name]:.2f}" for name in categories]
            for s in chosen
        ],
    )


def warn_if_busy(machines: Iterable[Mapping[str, float]]) -> None:
    """Say so if other processes kept part of the machine busy during a run."""
    worst = max((others_share(machine) for machine in machines), default=0.0)
    if worst > _BUSY:
        _console().print(
            f"[bold red]other processes used up to {worst:.2f} cores meanwhile: these "
            "figures are not those of a quiet machine[/]"
        )


def print_parts(title: str, shares: Mapping[str, Mapping[str, Any]]) -> None:
    """Milliseconds per step and share of the step for each part of it."""
    rows = [
        [name, f"{1000 * part['seconds']:.2f}", f"{100 * part['share']:.1f} %"]
        for name, part in shares.items()
    ]
    print_table(title, ["part", "ms per step", "share"], rows)
