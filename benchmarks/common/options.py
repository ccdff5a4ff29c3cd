# SPDX-License-Identifier: Apache-2.0
"""Command line options that the benchmarks have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.common.results import results_folder
from vllm_medusa.calibration.machine import engine_environment


def benchmark_parser(
    name: str, description: str, *, epilog: str | None = None
) -> argparse.ArgumentParser:
    """A parser with model, heads, thread binding, engine limits and output."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="base model (default: the default model)")
    parser.add_argument("--heads", default="default", help="Medusa heads")
    parser.add_argument(
        "--bind",
        metavar="CORES",
        help="VLLM_CPU_OMP_THREADS_BIND: default all cores, nobind on a busy machine",
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--quick", action="store_true", help="minutes, to try it out")
    parser.add_argument(
        "--output",
        type=Path,
        help=f"result file (default {results_folder().name}/{name}.json in results/)",
    )
    return parser


def parse_numbers(text: str) -> list[int]:
    """ "1,2,4" as numbers; ArgumentTypeError if it is anything else."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected numbers like 1,2,4, got {text!r}"
        ) from None
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"numbers must be at least 1, got {text!r}")
    return numbers


def output_path(arguments: argparse.Namespace, name: str) -> Path:
    """The result file asked for, or the default; --quick never overwrites that."""
    if arguments.output is not None:
        return Path(arguments.output)
    suffix = "-quick" if arguments.quick else ""
    return results_folder() / f"{name}{suffix}.json"


def model_folder(arguments: argparse.Namespace) -> Path:
    """The base model's folder, made if it is the default one."""
    if arguments.model is not None:
        return Path(arguments.model)
    from vllm_medusa.default_model import model_path

    return Path(model_path())


def heads_name(arguments: argparse.Namespace) -> str:
    """The heads asked for, as a path if they are the default ones."""
    if arguments.heads != "default":
        return str(arguments.heads)
    from vllm_medusa.default_model import heads_path

    return str(heads_path())


def engine_arguments(
    arguments: argparse.Namespace, max_num_seqs: int
) -> dict[str, Any]:
    """Arguments of `LLM` that all variants share.

    Prefix caching is off: a repeat would find its prompts from the repeat before.
    """
    return {
        "model": str(model_folder(arguments)),
        "dtype": arguments.dtype,
        "max_model_len": arguments.max_model_len,
        "max_num_seqs": max_num_seqs,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        "seed": 0,
    }


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """The workers' variables: vLLM's best on this machine unless --bind says else."""
    return engine_environment(arguments.bind)
