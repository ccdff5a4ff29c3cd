# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa calibrate`: the best tree for heads on this machine, at every load."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_medusa.calibration.options import CalibrationOptions
from vllm_medusa.errors import OutputError
from vllm_medusa.files import writing
from vllm_medusa.side_files import CALIBRATION_FILE

if TYPE_CHECKING:
    from vllm_medusa.calibration.prompts import TaskPrompt
    from vllm_medusa.calibration.result import CalibrationResult
    from vllm_medusa.checkpoint import HeadsCheckpoint
    from vllm_medusa.tree import TokenTree

NAME = "calibrate"
HELP = "measure heads on this machine and choose the tree of each number of requests"

_DEFAULT = CalibrationOptions()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, heads, what to measure and where to write."""
    parser.add_argument("model", metavar="MODEL", help="base model, or default")
    parser.add_argument("heads", metavar="HEADS", help="Medusa heads, or default")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="held-out prompts: text, one a line, or .jsonl as evaluate takes it "
        "(default: eight everyday ones)",
    )
    parser.add_argument(
        "--by-task",
        action="store_true",
        help='accuracies of each "category" of the prompts, too',
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=_DEFAULT.temperature,
        help="at which the heads will be used (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=_DEFAULT.max_tokens,
        help="longest answer (default: %(default)s)",
    )
    parser.add_argument(
        "--tree", help="tree to cut (default: the best one for the accuracies)"
    )
    for name, what in (
        ("batch-sizes", "numbers of running requests to time"),
        ("nodes", "numbers of nodes to time"),
    ):
        field = "node_counts" if name == "nodes" else "batch_sizes"
        values = list(getattr(_DEFAULT, field))
        parser.add_argument(
            f"--{name}",
            dest=field,
            type=int,
            nargs="+",
            default=values,
            metavar="N",
            help=f"{what} (default: {' '.join(map(str, values))})",
        )
    parser.add_argument(
        "--margin",
        type=float,
        default=_DEFAULT.margin,
        help="speed-up a tree must at least bring, less 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-rows",
        type=int,
        default=_DEFAULT.max_rows,
        help="largest step to time, in rows over all requests (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=_DEFAULT.steps,
        help="steps timed at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=_DEFAULT.repeats,
        help="readings of each number of nodes (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=_DEFAULT.seed)
    parser.add_argument("--dtype", default=_DEFAULT.dtype)
    parser.add_argument("--max-model-len", type=int, default=_DEFAULT.max_model_len)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"default: {CALIBRATION_FILE} beside the heads",
    )
    parser.add_argument(
        "--plots", type=Path, metavar="FOLDER", help="draw the figures there"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, choose, write and print."""
    from vllm_medusa.calibration.plots import draw_plots
    from vllm_medusa.calibration.prompts import calibration_prompts
    from vllm_medusa.checkpoint import load_heads
    from vllm_medusa.config import MedusaConfig
    from vllm_medusa.json_file import write_json
    from vllm_medusa.plotting import check_matplotlib
    from vllm_medusa.tree.resolve import resolve_tree

    names = [field.name for field in fields(CalibrationOptions)]
    values = {name: getattr(args, name) for name in names}
    options = CalibrationOptions(
        **values
        | {
            "batch_sizes": tuple(args.batch_sizes),
            "node_counts": tuple(args.node_counts),
        }
    )
    prompts = calibration_prompts(args.prompts, options.by_task)
    if args.plots is not None:
        check_matplotlib("--plots")
    checkpoint = load_heads(args.heads)
    tree = None
    if options.tree is not None:
        config = MedusaConfig(heads=args.heads, tree=options.tree)
        tree = resolve_tree(config, checkpoint.folder, checkpoint.spec.num_heads)
    output = args.output or checkpoint.folder / CALIBRATION_FILE
    with writing(output):  # a name may be too long to ask about
        if output.is_dir():
            raise OutputError(f"--output {output} is a folder: give the name of a file")
    for folder in {output.parent, args.plots or output.parent}:
        _check_writable(folder)
    result = _measure(args.model, checkpoint, tree, options, prompts)
    write_json(output, result.as_dict())
    written = [output]
    if args.plots is not None:
        written += draw_plots(args.plots, result)
    _print(result)
    print(*written, sep="\n")
    return 0


def _check_writable(folder: Path) -> None:
    with writing(folder):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OutputError(
            f"cannot write into {folder}: name other places with --output and --plots"
        )


def _measure(
    model: str,
    checkpoint: HeadsCheckpoint,
    tree: TokenTree | None,
    options: CalibrationOptions,
    prompts: list[TaskPrompt],
) -> CalibrationResult:
    from vllm_medusa.calibration.machine import engine_environment
    from vllm_medusa.calibration.run import Calibration, running_engine
    from vllm_medusa.demo.compare import on_cpu

    if on_cpu():
        # For the worker process, which vLLM starts; what the user has set stays.
        os.environ.update(engine_environment())
    if model == "default":
        from vllm_medusa.default_model import model_path

        model = str(model_path())
    return Calibration(model, checkpoint, tree, options, running_engine, print).run(
        prompts
    )


def _print(result: CalibrationResult) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for head, row in enumerate(result.total.table(), start=1):
        shown = ", ".join(f"{value:.3f}" for value in row[:5])
        console.print(f"head {head}: {shown}, … by rank")
    shown = ", ".join(
        f"{n}: {value:.2f}" for n, value in result.tokens_per_step.items()
    )
    console.print(f"tokens per step by nodes: {shown}")
    columns, rows = result.speedup_rows()
    table = Table(*columns, title="speed-up over plain decoding")
    for cells in rows:
        table.add_row(*cells)
    console.print(table)
    for low, high, nodes in result.table:
        console.print(f"{low} to {high} running request(s): {nodes} node(s)")
