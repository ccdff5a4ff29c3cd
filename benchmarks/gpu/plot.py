# SPDX-License-Identifier: Apache-2.0
"""Plots of a result file of `benchmarks.gpu.bench`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_medusa.files import atomic_path


def plot_overhead(path: Path, content: Mapping[str, Any]) -> None:
    """Overhead by rows, a panel for every attention and context, a line per batch.

    Whiskers span the repeats. ValueError if nothing was measured.
    """
    # The object interface: no global state, no display.
    from matplotlib.figure import Figure

    cells = content["cells"]
    if not cells:
        raise ValueError("no cell was measured: there is nothing to plot")
    attentions = list(dict.fromkeys(cell["attention"] for cell in cells))
    contexts = sorted({cell["context"] for cell in cells})
    figure = Figure(
        figsize=(1 + 4 * len(contexts), 0.6 + 3.4 * len(attentions)),
        layout="constrained",
    )
    grid = figure.subplots(
        len(attentions), len(contexts), squeeze=False, sharex=True, sharey=True
    )
    for row, attention in zip(grid, attentions, strict=True):
        for axes, context in zip(row, contexts, strict=True):
            chosen = [
                c
                for c in cells
                if (c["attention"], c["context"]) == (attention, context)
            ]
            for batch in sorted({c["batch"] for c in chosen}):
                line = sorted(
                    (c["rows"], c["overhead"]) for c in chosen if c["batch"] == batch
                )
                medians = [o["median"] for _, o in line]
                axes.errorbar(
                    [rows for rows, _ in line],
                    medians,
                    yerr=[
                        [o["median"] - o["low"] for _, o in line],
                        [o["high"] - o["median"] for _, o in line],
                    ],
                    marker="o",
                    capsize=2,
                    label=f"batch {batch}",
                )
            axes.axhline(1.0, color="black", linewidth=0.8)
            axes.set_xscale("log", base=2)
            axes.set_title(f"{attention}, context {context}")
            if chosen:
                axes.legend(fontsize="small")
    figure.supxlabel("rows per request, root included")
    figure.supylabel("step time over a plain step")
    settings = content["settings"]
    gpu = settings["gpu"]["name"] if settings["gpu"] else "no GPU"
    figure.suptitle(f"{settings['model']}, {settings['dtype']}, {gpu}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.plot", description=__doc__
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--output", type=Path, help="default: FILE with .png")
    arguments = parser.parse_args()
    output = arguments.output or arguments.file.with_suffix(".png")
    plot_overhead(output, json.loads(arguments.file.read_text()))
    print(output)


if __name__ == "__main__":
    main()
