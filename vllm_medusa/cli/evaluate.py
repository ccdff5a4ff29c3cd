# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa evaluate`: quality and speed of schemes, trees and heads."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_medusa.errors import ConfigError

if TYPE_CHECKING:
    from vllm_medusa.evaluation.measure import Measured
    from vllm_medusa.evaluation.options import Options
    from vllm_medusa.evaluation.prompts import Prompt
    from vllm_medusa.evaluation.settings import Setting

NAME = "evaluate"
HELP = "measure quality and speed of acceptance schemes, trees and heads"

_PACKAGES = {
    "matplotlib": "matplotlib",
    "sacrebleu": "sacrebleu",
    "rouge_score": "rouge-score",
}
_WIDTH = 160
# (max_tokens, repeats, prompts at most) of a usual and of a quick evaluation
_USUAL = (32, 2, None)
_QUICK = (16, 1, 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    parser.add_argument(
        "--suite",
        nargs="+",
        default=[],
        metavar="NAME",
        help="heads, beam, trees, epsilon, acceptance or all",
    )
    parser.add_argument(
        "--setting",
        action="append",
        default=[],
        metavar="NAME=OPTIONS",
        help="a setting of your own, with options as in medusa:HEADS?OPTIONS and "
        "temperature, such as 'wide=tree=optimal:8&temperature=0.7'; repeatable",
    )
    parser.add_argument(
        "--model",
        default="default",
        help="base model, folder or hub id (default: the default model)",
    )
    parser.add_argument(
        "--heads", default="default", help="Medusa heads for it, folder or hub id"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='JSON lines with "prompt", "turns" or "messages", and "reference" and '
        '"category" if there are any (default: MT-bench)',
    )
    parser.add_argument(
        "--per-category",
        type=int,
        metavar="N",
        help="questions of each MT-bench category (default: 1)",
    )
    parser.add_argument(
        "--max-tokens", type=int, help=f"longest answer (default: {_USUAL[0]})"
    )
    parser.add_argument(
        "--repeats", type=int, help=f"runs of each setting (default: {_USUAL[1]})"
    )
    parser.add_argument(
        "--concurrency", type=int, default=1, help="requests at a time (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--engines",
        type=int,
        default=3,
        help="loaded at once, plain vLLM among them (default: %(default)s)",
    )
    parser.add_argument(
        "--separate-engines",
        action="store_true",
        help="an engine for every tree, where one could change its tree",
    )
    parser.add_argument(
        "--bind",
        metavar="CORES",
        help="VLLM_CPU_OMP_THREADS_BIND: default all cores, nobind on a busy machine",
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--quick", action="store_true", help="a minute, to try it out")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("evaluation.json"),
        metavar="FILE",
        help="result file; plots are written beside it (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print tables, and write the result file and the plots."""
    from rich.console import Console

    from vllm_medusa.evaluation.measure import Measurement
    from vllm_medusa.evaluation.plots import draw_plots
    from vllm_medusa.evaluation.records import summarise
    from vllm_medusa.evaluation.tables import print_tables, warn_if_busy

    _check(args)
    max_tokens, repeats, most_prompts = _QUICK if args.quick else _USUAL
    prompts = _prompts(args)[:most_prompts]
    settings = _settings(args)
    options = _options(args, max_tokens, repeats)
    references = {p.name: p.reference for p in prompts if p.reference is not None}

    def write(measured: Measured) -> None:
        _write(args.output, args, options, prompts, measured, references)

    # Wide enough for every column when the output goes into a file.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    measured = Measurement(
        options,
        prompts,
        settings,
        lambda text: console.print(text, markup=False),
        write,
    ).run()
    summaries = summarise(measured.records, measured.scores, references)
    print_tables(console, summaries)
    warn_if_busy(console, (record.machine for record in measured.records))
    for path in [args.output, *draw_plots(args.output, summaries)]:
        console.print(str(path), markup=False)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what would fail only after minutes."""
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise ConfigError(
                f"evaluate needs the package {package}: pip install "
                "'vllm-medusa[evaluate]'"
            )
    if not args.suite and not args.setting:
        raise ConfigError("there is nothing to measure: give --suite or --setting")
    if args.model != "default" and args.heads == "default":
        raise ConfigError(
            f"--model {args.model} needs --heads: heads fit only the model that they "
            "were trained for"
        )
    if args.per_category is not None and args.prompts is not None:
        raise ConfigError("--per-category is about MT-bench: drop it or --prompts")
    if args.per_category is not None and args.per_category < 1:
        raise ConfigError(f"--per-category must be at least 1: {args.per_category}")
    folder = args.output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    can_write = folder.is_dir() and os.access(folder, os.W_OK)
    if args.output.is_dir() or not can_write:
        raise ConfigError(f"cannot write {args.output}: name another file by --output")


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    from vllm_medusa.evaluation.prompts import (
        default_prompts,
        read_evaluation_prompts,
    )

    if args.prompts is None:
        return default_prompts(args.per_category or 1)
    return read_evaluation_prompts(args.prompts)


def _settings(args: argparse.Namespace) -> list[Setting]:
    from vllm_medusa.checkpoint import load_heads
    from vllm_medusa.evaluation.settings import parse_setting
    from vllm_medusa.evaluation.suites import make_settings

    own = [parse_setting(text, args.heads) for text in args.setting]
    names = [setting.name for setting in own]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two settings are called {name!r}: rename one of them")
    if not args.suite:
        return own
    num_heads = load_heads(args.heads).spec.num_heads
    return [*make_settings(args.suite, args.heads, num_heads), *own]


def _options(args: argparse.Namespace, max_tokens: int, repeats: int) -> Options:
    from vllm_medusa.evaluation.engines import can_change_trees
    from vllm_medusa.evaluation.options import Options

    model = args.model
    if model == "default":
        from vllm_medusa.default_model import model_path

        model = str(model_path())
    return Options(
        model=model,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        max_tokens=max_tokens if args.max_tokens is None else args.max_tokens,
        repeats=repeats if args.repeats is None else args.repeats,
        concurrency=args.concurrency,
        seed=args.seed,
        engines=args.engines,
        changes_trees=can_change_trees() and not args.separate_engines,
        bind=args.bind,
    )


def _write(
    path: Path,
    args: argparse.Namespace,
    options: Options,
    prompts: Sequence[Prompt],
    measured: Measured,
    references: dict[str, str],
) -> None:
    from vllm_medusa.calibration.result_file import without_folders, write_result_file
    from vllm_medusa.evaluation.records import summarise

    settings: dict[str, Any] = {
        "model": without_folders([args.model]),
        "heads": without_folders([args.heads]),
        "dtype": options.dtype,
        "max_tokens": options.max_tokens,
        "repeats": options.repeats,
        "concurrency": options.concurrency,
        "seed": options.seed,
        "changes_trees": options.changes_trees,
    }
    summaries = summarise(measured.records, measured.scores, references)
    write_result_file(
        path,
        {"evaluation": "settings"},
        without_folders(["vllm-medusa", *sys.argv[1:]]),
        {
            "settings": settings,
            "prompts": [
                {
                    "name": prompt.name,
                    "longest_answer": measured.lengths.get(prompt.name),
                    "has_reference": prompt.reference is not None,
                }
                for prompt in prompts
            ],
            "summary": [summary.as_dict() for summary in summaries],
            "records": [record.as_dict() for record in measured.records],
        },
    )
