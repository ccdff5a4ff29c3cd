# SPDX-License-Identifier: Apache-2.0
"""A calibration as three pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_medusa.calibration.result import CalibrationResult
from vllm_medusa.calibration.table import speedups
from vllm_medusa.plotting import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = ("accuracy.png", "tokens.png", "speedup.png")
"""Files that `draw_plots` writes."""

_WIDTH, _HEIGHT = 4.8, 3.8


def draw_plots(folder: Path, result: CalibrationResult) -> list[Path]:
    """Draw accuracy by head and rank (a panel per task, too), expected tokens per step
    by nodes, and speed-up by nodes and batch; return where they lie.

    Raises:
        OutputError: there is no room, or no permission to write.
    """
    paths = [folder / name for name in NAMES]
    _draw_accuracy(paths[0], result)
    _draw_tokens(paths[1], result)
    _draw_speedup(paths[2], result)
    return paths


def _draw_accuracy(path: Path, result: CalibrationResult) -> None:
    # The object interface: no global state, no display.
    from matplotlib.figure import Figure

    panels = {"all answers": result.total}
    panels |= {task: sums for task, (sums, _) in result.by_task.items()}
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, sums) in zip(grid.flat, panels.items(), strict=False):
        for head, row in enumerate(sums.table(), start=1):
            ranks = range(1, len(row) + 1)
            # Zeros have no place on a logarithmic axis.
            values = [value or float("nan") for value in row]
            axes.plot(ranks, values, marker=".", label=f"head {head}")
        axes.set_yscale("log")
        axes.set(title=title, xlabel="rank of the guess")
        axes.grid(alpha=0.3)
    grid[0, 0].set(ylabel="mean probability under the base model")
    grid[0, 0].legend(fontsize="small")
    save_figure(figure, path)


def _draw_tokens(path: Path, result: CalibrationResult) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH * 1.2, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    nodes, measured = result.measured
    tokens = result.tokens_per_step
    axes.plot(list(tokens), list(tokens.values()), marker=".", label="all answers")
    axes.plot([nodes], [measured], "x", color="black", label="measured")
    for task, (_, expected) in result.by_task.items():
        axes.plot(list(expected), list(expected.values()), linewidth=1, label=task)
    axes.set(title="tokens per step", xlabel="nodes")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_figure(figure, path)


def _draw_speedup(path: Path, result: CalibrationResult) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH * 1.2, _HEIGHT), layout="constrained")
    axes: Axes = figure.subplots()
    for requests, row in result.costs.items():
        gains = {0: 1.0} | speedups(row, result.tokens_per_step)
        axes.plot(list(gains), list(gains.values()), marker=".", label=str(requests))
    axes.axhline(1, color="black", linestyle="--", linewidth=1)
    axes.set(title="speed-up over plain decoding", xlabel="nodes")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title="requests")
    save_figure(figure, path)
