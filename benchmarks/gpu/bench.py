# SPDX-License-Identifier: Apache-2.0
"""What a step with a tree costs on a GPU: step time by rows, batch and context.

Plain vLLM and Medusa with trees of 4 to 64 rows (the root included) run in processes
of their own and take turns at every cell; only decode steps are timed. The shapes of
Vicuna have random weights and random heads, which cost what trained ones cost. Every
cell is written as soon as it is measured; the same command goes on where it was cut
short.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.options import parse_numbers
from benchmarks.common.results import results_folder
from benchmarks.gpu.engines import Setup
from benchmarks.gpu.gpu import commit, find_gpu
from benchmarks.gpu.grid import Grid
from benchmarks.gpu.measure import Bench
from benchmarks.gpu.models import MODELS, SMOLLM, find_model
from benchmarks.gpu.plot import plot_overhead
from benchmarks.gpu.records import Records
from benchmarks.gpu.report import print_report, projections
from vllm_medusa.default_model import cache_folder
from vllm_medusa.errors import MedusaError

ATTENTION = ("auto", "triton", "cascade", "xformers")
ENGINES = {"vicuna-7b": 2, "vicuna-13b": 2}
MAX_TOKENS_PER_STEP = {SMOLLM: 6}
DRY_RUN = {
    "model": "tiny",
    "rows": [4, 8],
    "batches": [1, 2],
    "contexts": [64],
    "attention": ["auto"],
    "steps": 8,
    "repeats": 1,
}


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=MODELS, default="vicuna-7b")
    parser.add_argument("--rows", type=parse_numbers, default=[4, 8, 16, 32, 64])
    parser.add_argument("--batches", type=parse_numbers, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--contexts", type=parse_numbers, default=[256, 2048, 8192])
    parser.add_argument(
        "--attention",
        type=lambda text: text.split(","),
        default=["auto"],
        help=f"some of {','.join(ATTENTION)} (default auto, the platform's best)",
    )
    parser.add_argument("--steps", type=int, default=64, help="timed at a time")
    parser.add_argument("--repeats", type=int, default=2, help="default 2")
    parser.add_argument(
        "--parts",
        type=parse_numbers,
        default=[64],
        metavar="ROWS",
        help="row counts whose parts are timed, at the shortest context",
    )
    parser.add_argument("--no-parts", action="store_true")
    parser.add_argument("--no-graphs", action="store_true", help="eager, to compare")
    parser.add_argument(
        "--engines", type=int, help="loaded at once (default 2 for Vicuna, else 6)"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--work", type=Path, help="folder for configs and random heads")
    parser.add_argument(
        "--output", type=Path, help="default results/gpu/bench-MODEL.json"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="a toy on the CPU, to prove the plumbing; its figures mean nothing",
    )
    arguments = parser.parse_args(words)
    if arguments.dry_run:
        vars(arguments).update(DRY_RUN, dtype="float32", parts=[max(DRY_RUN["rows"])])  # type: ignore[call-overload]
    arguments.output = arguments.output or default_output(arguments)
    if (
        arguments.dry_run
        and results_folder().parent in arguments.output.resolve().parents
    ):
        parser.error("--output: figures of a dry run are no results")
    if min(arguments.rows) < 2:
        parser.error(
            "--rows: a tree has at least 2 rows; plain vLLM is always measured"
        )
    if unknown := set(arguments.attention) - set(ATTENTION):
        parser.error(f"--attention knows no {', '.join(sorted(unknown))}")
    arguments.engines = arguments.engines or ENGINES.get(arguments.model, 6)
    arguments.work = arguments.work or cache_folder() / "shapes"
    return arguments


def default_output(arguments: argparse.Namespace) -> Path:
    """The result file; that of a dry run lies in the folder for temporary files."""
    name = f"bench-{arguments.model}{'-eager' if arguments.no_graphs else ''}.json"
    if arguments.dry_run:
        return Path(tempfile.gettempdir()) / "vllm-medusa-dry-run" / name
    return results_folder("gpu") / name


def make_setup(arguments: argparse.Namespace) -> Setup:
    """What the engines share; SystemExit where there is no GPU and no dry run."""
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    if arguments.dry_run:
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        return Setup(arguments.dtype, False, None, environment)
    gpu = find_gpu()
    if gpu is None:
        raise SystemExit("error: nvidia-smi finds no GPU; --dry-run needs none")
    graphs = not arguments.no_graphs
    return Setup(arguments.dtype, graphs, gpu.memory_bytes, environment)


def make_settings(arguments: argparse.Namespace, grid: Grid) -> dict[str, Any]:
    """What timings of one file have in common."""
    gpu = find_gpu()
    return {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "cuda_graphs": not arguments.no_graphs and not arguments.dry_run,
        "steps": grid.steps,
        "warm_up": grid.warm_up,
        "repeats": grid.repeats,
        "gpu": None if gpu is None else gpu.as_dict(),
        "commit": commit(),
    }


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(words)
    if arguments.dry_run:
        arguments.output.unlink(missing_ok=True)
    setup = make_setup(arguments)
    grid = Grid(
        tuple(arguments.contexts),
        tuple(arguments.batches),
        tuple(arguments.rows),
        arguments.steps,
        min(16, arguments.steps),
        arguments.repeats,
        # Random heads guess next to nothing.
        MAX_TOKENS_PER_STEP.get(arguments.model, 2),
    )
    records = Records(arguments.output, make_settings(arguments, grid))
    model = find_model(arguments.model, arguments.work)
    bench = Bench(model, grid, setup, arguments.engines, records)
    too_large = [cell for cell in grid.all_cells() if cell not in bench.cells]
    if too_large:
        print(
            "no room for (context, batch):", *((c.context, c.batch) for c in too_large)
        )
    bench.measure(arguments.attention, [] if arguments.no_parts else arguments.parts)
    records.content["projected"] = projections(records.content)
    records.save()
    print_report(records.content)
    plot = arguments.output.with_suffix(".png")
    plot_overhead(plot, records.content)
    print(f"{arguments.output}\n{plot}")
    if arguments.dry_run:
        print(f"a dry run on {os.cpu_count()} CPU core(s): these figures mean nothing")


if __name__ == "__main__":
    try:
        main()
    except (MedusaError, ValueError) as error:
        sys.exit(f"error: {error}")
