# SPDX-License-Identifier: Apache-2.0
"""Plots beside the result files (PNG, no display needed)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common.figures import Summary
from vllm_medusa.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _figure(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    # The object interface: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _grouped_bars(
    axes: Axes,
    groups: Sequence[str],
    series: Mapping[str, Sequence[tuple[float, float, float]]],
) -> None:
    """Bars (median, low, high) side by side in each group, one colour per series."""
    width = 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
        places = [
            group + index * width - 0.4 + width / 2 for group in range(len(groups))
        ]
        medians = [value[0] for value in values]
        below = [value[0] - value[1] for value in values]
        above = [value[2] - value[0] for value in values]
        axes.bar(places, medians, width, label=name, yerr=[below, above], capsize=2)
    axes.set_xticks(range(len(groups)), groups)


def plot_speedups(path: Path, summaries: Sequence[Summary]) -> None:
    """Speed-up over plain vLLM by concurrency, and by category at the lowest one.

    Whiskers span the repeats. Only the first kind of answers is drawn.
    """
    chosen = [s for s in summaries if s.answers == summaries[0].answers]
    concurrency = sorted({s.concurrency for s in chosen})
    variants = list(dict.fromkeys(s.variant for s in chosen))
    table = {(s.variant, s.concurrency): s for s in chosen}
    figure, (left, right) = _figure(14, 4.5, 2)

    spreads = {name: [table[name, c].speedup for c in concurrency] for name in variants}
    _grouped_bars(
        left,
        [str(c) for c in concurrency],
        {n: [(s.median, s.low, s.high) for s in row] for n, row in spreads.items()},
    )
    left.set_xlabel("concurrent requests")
    left.set_ylabel("speed-up over plain vLLM")

    categories = list(chosen[0].speedup_by_category)
    ratios = {
        name: table[name, concurrency[0]].speedup_by_category for name in variants
    }
    _grouped_bars(
        right,
        categories,
        {n: [(row[c],) * 3 for c in categories] for n, row in ratios.items()},
    )
    right.set_title(f"by category, {concurrency[0]} request(s)")
    right.tick_params(axis="x", rotation=30)
    for axes in (left, right):
        axes.axhline(1.0, color="black", linewidth=0.8)
    left.legend(fontsize="small")
    _save(figure, path)


def plot_throughput(path: Path, spreads: Mapping[str, Any]) -> None:
    """Tokens/s of an offline batch, one bar per variant with the repeats' spread."""
    figure, (axes,) = _figure(1.5 + 1.6 * len(spreads), 4, 1)
    values = {n: [(s.median, s.low, s.high)] for n, s in spreads.items()}
    _grouped_bars(axes, ["offline batch"], values)
    axes.set_ylabel("tokens/s")
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_serving(path: Path, points: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """TTFT, inter-token latency and tokens/s against the request rate, by variant."""
    panels = {
        "median_ttft_ms": "time to first token, ms (median)",
        "median_tpot_ms": "inter-token latency, ms (median of requests)",
        "output_throughput": "tokens/s",
    }
    figure, axes = _figure(15, 4, len(panels))
    labels = [row["rate"] for row in next(iter(points.values()))]
    for panel, (key, title) in zip(axes, panels.items(), strict=True):
        for name, rows in points.items():
            panel.plot(range(len(rows)), [row[key] for row in rows], "o-", label=name)
        panel.set_xticks(range(len(labels)), labels)
        panel.set_xlabel("requests per second")
        panel.set_title(title)
        panel.set_ylim(bottom=0)
    axes[0].legend(fontsize="small")
    _save(figure, path)
