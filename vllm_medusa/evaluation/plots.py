# SPDX-License-Identifier: Apache-2.0
"""One picture per suite (PNG, no display needed)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_medusa.calibration.spread import Spread
from vllm_medusa.evaluation.records import Summary
from vllm_medusa.evaluation.settings import PLAIN
from vllm_medusa.plotting import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _tokens_per_step(summary: Summary) -> Spread:
    return summary.tokens_per_step


def _speedup(summary: Summary) -> Spread:
    return summary.speedup


def _real_time_factor(summary: Summary) -> Spread:
    return summary.real_time_factor


def _perplexity(summary: Summary) -> Spread:
    quality = summary.quality
    value, error = quality.perplexity, quality.perplexity_error
    return Spread(value, value - error, value + error)


def _agreement(summary: Summary) -> Spread:
    value = summary.quality.agreement
    return Spread(value, value, value)


Panel = tuple[str, Callable[[Summary], Spread]]
_TOKENS: Panel = ("tokens per step", _tokens_per_step)
_SPEED: Panel = ("speed-up over plain vLLM", _speedup)
_FACTOR: Panel = ("real-time factor", _real_time_factor)
_PERPLEXITY: Panel = ("perplexity under the base model", _perplexity)
_AGREEMENT: Panel = ("share of greedy tokens", _agreement)

_PANELS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "heads": ("heads in use", (_TOKENS, _SPEED, _FACTOR)),
    "beam": ("depth of the beam search", (_TOKENS, _SPEED, _FACTOR)),
    "trees": ("nodes", (_TOKENS, _SPEED, _FACTOR)),
    "epsilon": ("epsilon", (_TOKENS, _SPEED, _PERPLEXITY, _AGREEMENT)),
    "acceptance": ("temperature", (_TOKENS, _SPEED, _PERPLEXITY, _AGREEMENT)),
}
"""What each suite's plot has on its x-axis, and its panels."""


def plot_path(result: Path, suite: str) -> Path:
    """Where a suite's plot lies: beside the result file."""
    return result.with_name(f"{result.stem}-{suite}.png")


def draw_plots(result: Path, summaries: Sequence[Summary]) -> list[Path]:
    """Draw a picture of every suite that has an x-axis; return where they lie.

    Whiskers span the repeats, at perplexity one standard error.
    """
    suites = dict.fromkeys(s.setting.suite for s in summaries)
    paths = []
    for suite in suites:
        if suite in _PANELS:
            paths.append(plot_path(result, suite))
            _draw(paths[-1], suite, [s for s in summaries if s.setting.suite == suite])
    return paths


def _draw(path: Path, suite: str, summaries: Sequence[Summary]) -> None:
    # The object interface: no global state, no display.
    from matplotlib.figure import Figure

    label, panels = _PANELS[suite]
    figure = Figure(figsize=(4.6 * len(panels), 4), layout="constrained")
    for axes, (title, figure_of) in zip(
        figure.subplots(1, len(panels)), panels, strict=True
    ):
        _draw_panel(axes, summaries, figure_of)
        axes.set(title=title, xlabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    save_figure(figure, path)


def _draw_panel(
    axes: Axes, summaries: Sequence[Summary], figure_of: Callable[[Summary], Spread]
) -> None:
    """A line per series; what has no place on the x-axis is a level line."""
    lines: dict[str, list[tuple[float, Spread]]] = {}
    levels: dict[str, float] = {}
    for summary in summaries:
        setting = summary.setting
        value = setting.temperature if _is_plain_of_many(summaries, summary) else None
        value = setting.value if setting.value is not None else value
        if value is None:
            levels[setting.series] = figure_of(summary).median
        else:
            lines.setdefault(setting.series, []).append((value, figure_of(summary)))
    for series, points in lines.items():
        places = [place for place, _ in points]
        spreads = [spread for _, spread in points]
        axes.errorbar(
            places,
            [spread.median for spread in spreads],
            yerr=[
                [spread.median - spread.low for spread in spreads],
                [spread.high - spread.median for spread in spreads],
            ],
            marker="o",
            capsize=2,
            label=series,
        )
    measured = sorted({place for points in lines.values() for place, _ in points})
    if all(place == int(place) for place in measured):
        axes.set_xticks(measured, [str(int(place)) for place in measured])
    for index, (series, level) in enumerate(levels.items()):
        axes.axhline(
            level, color=f"{0.3 * index:.1f}", linestyle="--", linewidth=1, label=series
        )


def _is_plain_of_many(summaries: Sequence[Summary], summary: Summary) -> bool:
    """Whether this is plain vLLM in a suite that has it at several temperatures."""
    plain = [s for s in summaries if s.setting.name == PLAIN]
    return summary.setting.name == PLAIN and len(plain) > 1
