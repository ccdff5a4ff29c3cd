# SPDX-License-Identifier: Apache-2.0
"""An evaluation's figures as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from vllm_medusa.calibration.machine import others_share
from vllm_medusa.evaluation.records import Summary

# Cores; what vLLM's own idle processes and the system take stays well below.
_BUSY = 0.1
_NONE = "-"


def make_table(suite: str, summaries: Sequence[Summary]) -> Table:
    """One row per setting of a suite; columns that no setting fills are left out."""
    columns = {
        "setting": [_name(s) for s in summaries],
        "tokens/step": [str(s.tokens_per_step) for s in summaries],
        "step ms": [
            _NONE
            if s.step_milliseconds is None
            else f"{s.step_milliseconds.median:.1f}"
            for s in summaries
        ],
        "overhead": [
            _NONE if s.overhead is None else f"{s.overhead.median:.2f}"
            for s in summaries
        ],
        "speed-up": [str(s.speedup) for s in summaries],
        "RTF": [f"{s.real_time_factor.median:.2f}" for s in summaries],
        "perplexity": [
            f"{s.quality.perplexity:.2f} ± {s.quality.perplexity_error:.2f}"
            for s in summaries
        ],
        "greedy": [f"{100 * s.quality.agreement:.1f} %" for s in summaries],
        "other texts": [
            _NONE if s.other_texts is None else str(s.other_texts) for s in summaries
        ],
        "BLEU": [
            _NONE if s.references is None else f"{s.references.bleu:.1f}"
            for s in summaries
        ],
        "ROUGE-1/2/L": [
            _NONE
            if s.references is None
            else "/".join(
                f"{value:.3f}"
                for value in (
                    s.references.rouge1,
                    s.references.rouge2,
                    s.references.rouge_l,
                )
            )
            for s in summaries
        ],
    }
    shown = {name: cells for name, cells in columns.items() if set(cells) != {_NONE}}
    table = Table(title=f"{suite} (median, min-max of repeats)")
    for index, name in enumerate(shown):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    return table


def _name(summary: Summary) -> str:
    setting = summary.setting
    if setting.temperature and f"{setting.temperature:g}" not in setting.name:
        return f"{setting.name}, T = {setting.temperature:g}"
    return setting.name


def print_tables(console: Console, summaries: Sequence[Summary]) -> None:
    """A table per suite, in first-seen order."""
    for suite in dict.fromkeys(s.setting.suite for s in summaries):
        chosen = [s for s in summaries if s.setting.suite == suite]
        console.print(make_table(suite, chosen))


def warn_if_busy(console: Console, machines: Iterable[Mapping[str, float]]) -> None:
    """Say so if other processes kept part of the machine busy during a run."""
    worst = max((others_share(machine) for machine in machines), default=0.0)
    if worst > _BUSY:
        console.print(
            f"other processes used up to {worst:.2f} cores meanwhile: these speeds are "
            "not those of a quiet machine",
            style="bold red",
        )
