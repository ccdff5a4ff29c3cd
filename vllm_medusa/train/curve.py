# SPDX-License-Identifier: Apache-2.0
"""The training curve as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_medusa import plotting


def check_matplotlib() -> None:
    """Raise ConfigError if matplotlib is missing: better before hours of training."""
    plotting.check_matplotlib("the training curve")


def draw_curve(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG of each head's training loss and held-out top-1 accuracy.

    Args:
        history: points {"step": int, "loss": [K], "accuracy": [K]}.
        path: where to.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    steps = [point["step"] for point in history]
    labels = {
        "loss": ("training loss", "nats per token"),
        "accuracy": ("held-out accuracy", "share of best guesses that are right"),
    }
    for ax, (key, (title, unit)) in zip(axes, labels.items(), strict=True):
        for head in range(len(history[0][key])):
            values = [point[key][head] for point in history]
            ax.plot(steps, values, marker=".", label=f"head {head + 1}")
        ax.set(title=title, xlabel="step", ylabel=unit)
        ax.grid(alpha=0.3)
    axes[1].set_ylim(bottom=0)
    axes[0].legend()
    plotting.save_figure(figure, path)
