# SPDX-License-Identifier: Apache-2.0
"""Tables of a result file, what follows from it, and whether the goals are reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.common.tables import print_table
from benchmarks.gpu.engines import names
from benchmarks.gpu.projection import project
from benchmarks.gpu.timings import check_memory

# Goals for the shape of Vicuna-7B on an H100 in bfloat16, batch 1, 64 rows.
GOAL_MODEL, GOAL_ROWS = "vicuna-7b", 64
MAX_OVERHEAD = 1.15
MAX_ADDED_SHARE = 0.08


def projections(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Speed-ups that follow at batch 1, where the published figures are from."""
    model = content["settings"]["model"]
    rows = []
    for cell in content["cells"]:
        if cell["batch"] == 1:
            overhead = cell["overhead"]["median"]
            place = {key: cell[key] for key in ("attention", "context", "batch")}
            rows += [{**place, **row} for row in project(model, cell["rows"], overhead)]
    return rows


def without_graph(content: Mapping[str, Any]) -> list[str]:
    """The cells that had no CUDA graph of their own though graphs were asked for."""
    if not content["settings"]["cuda_graphs"]:
        return []
    found = []
    for cell in content["cells"]:
        name = f"{cell['attention']}, {names([cell['rows']])[cell['rows']]}"
        captured = content["engines"][name]["graphs"]["captured"]
        if [cell["batch"], cell["rows"]] not in captured:
            place = f"context {cell['context']}, batch {cell['batch']}"
            found.append(f"{name}, {place}: no CUDA graph was captured for it")
    return found


def goals(content: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """(what was found, whether it reaches the goal) for all that has a goal.

    Goals of the 7B shape apply to its result files only, that of memory to all.
    """
    found: list[tuple[str, bool]] = []
    for name, engine in content["engines"].items():
        memory = engine["memory"]
        if "buffers" in memory:
            text = (
                f"{name}: heads {memory['heads'] / 2**20:.0f} MiB, buffers "
                f"{memory['buffers'] / 2**20:.1f} MiB (goal: at most 64)"
            )
            found.append((text, check_memory(memory) is None))
    found += [(text, False) for text in without_graph(content)]
    if content["settings"]["model"] != GOAL_MODEL:
        return found

    def in_scope(kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for record in content[kind]:
            if record["batch"] == 1 and record["rows"] == GOAL_ROWS:
                context = f"context {record['context']}"
                yield f"{record['attention']}, {context}: {GOAL_ROWS} rows", record

    for name, record in in_scope("cells"):
        overhead = record["overhead"]["median"]
        text = f"{name} cost {overhead:.3f} plain steps (goal: {MAX_OVERHEAD})"
        found.append((text, overhead <= MAX_OVERHEAD))
    for name, record in in_scope("parts"):
        share = record["added_share"]
        text = f"{name}: heads, verify and move take {share:.1%} (goal: 8 %)"
        found.append((text, share <= MAX_ADDED_SHARE))
    return found


def print_report(content: Mapping[str, Any]) -> None:
    """Everything as tables on the terminal."""
    cells = content["cells"]
    for attention, context in dict.fromkeys(
        (c["attention"], c["context"]) for c in cells
    ):
        chosen = [
            c for c in cells if (c["attention"], c["context"]) == (attention, context)
        ]
        print_table(
            f"step with attention {attention}, context {context}",
            ["batch", "rows", "plain ms", "ms", "over a plain step", "spread"],
            [
                [
                    str(c["batch"]),
                    str(c["rows"]),
                    f"{1e3 * c['plain_seconds']['median']:.3f}",
                    f"{1e3 * c['seconds']['median']:.3f}",
                    f"{c['overhead']['median']:.3f}",
                    f"{c['overhead']['low']:.3f}-{c['overhead']['high']:.3f}",
                ]
                for c in sorted(chosen, key=lambda c: (c["batch"], c["rows"]))
            ],
        )
    if content["parts"]:
        names = list(
            dict.fromkeys(n for p in content["parts"] for n in p["part_seconds"])
        )
        print_table(
            "parts of a step, ms",
            ["attention", "context", "batch", "rows", "step", *names, "added"],
            [
                [
                    part["attention"],
                    *(str(part[key]) for key in ("context", "batch", "rows")),
                    f"{1e3 * part['step_seconds']:.3f}",
                    *(f"{1e3 * part['part_seconds'].get(n, 0):.3f}" for n in names),
                    f"{part['added_share']:.1%}",
                ]
                for part in content["parts"]
            ],
        )
    if content["speed"]:
        print_table(
            "measured on questions, with real heads",
            ["attention", "concurrency", "rows", "tokens/s", "tokens/step", "speed-up"],
            [
                [
                    run["attention"],
                    str(run["concurrency"]),
                    str(run["rows"]),
                    f"{run['tokens_per_second']['median']:.0f}",
                    f"{run['tokens_per_step']:.2f}",
                    f"{run['speedup']['median']:.2f}",
                ]
                for run in content["speed"]
            ],
        )
    if rows := projections(content):
        print_table(
            f"speed-up {rows[0]['label']}",
            ["attention", "context", "heads", "tokens/step", "overhead", "speed-up"],
            [
                [
                    row["attention"],
                    str(row["context"]),
                    row["training"],
                    f"{row['tokens_per_step']:.2f}",
                    f"{row['overhead']:.3f}",
                    f"{row['speedup']:.2f}",
                ]
                for row in rows
            ],
        )
        for source in dict.fromkeys(
            f"{row['training']}: {row['source']}" for row in rows
        ):
            print(source)
    for name, reason in content["refused"].items():
        print(f"not measured, {name}: {reason.splitlines()[0]}")
    for text, reached in goals(content):
        print(f"{'reached' if reached else 'MISSED'}  {text}")
