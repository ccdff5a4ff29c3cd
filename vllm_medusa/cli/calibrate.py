# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa calibrate`: measure this machine and write batch_table.json."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_medusa.errors import ConfigError, UnsupportedError
from vllm_medusa.side_files import ACCURACIES_FILE, BATCH_TABLE_FILE

if TYPE_CHECKING:
    from vllm_medusa.checkpoint import HeadsCheckpoint
    from vllm_medusa.tree import TokenTree

NAME = "calibrate"
HELP = "measure how many nodes pay on this machine, by number of requests"

# Rows (nodes + 1) 2, 3, 4, 5, 6, 8, 9, 12, 16, 17, 24 and 32: on both sides of the
# multiples that kernels work in.
NODE_COUNTS = (1, 2, 3, 4, 5, 7, 8, 11, 15, 16, 23, 31)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, heads, what to measure and where to write."""
    parser.add_argument("model", metavar="MODEL", help="base model, or default")
    parser.add_argument("heads", metavar="HEADS", help="Medusa heads, or default")
    parser.add_argument("--tree", help="tree to cut (default: the heads' own)")
    parser.add_argument(
        "--batch-sizes",
        type=int,
        nargs="+",
        default=list(BATCH_SIZES),
        metavar="N",
        help="numbers of running requests to measure",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.03,
        help="speed-up a tree must at least bring, less 1 (default 0.03)",
    )
    parser.add_argument(
        "--max-rows",
        type=int,
        default=160,
        help="largest step to time, in rows over all requests (default 160)",
    )
    parser.add_argument("--steps", type=int, default=8, help="steps timed at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=Path, help="prompts, one a line")
    parser.add_argument("--max-tokens", type=int, default=96, help="longest answer")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument(
        "--output", type=Path, help="default: batch_table.json beside the heads"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, choose, write and print the table."""
    from vllm_medusa.calibration.machine import engine_environment
    from vllm_medusa.checkpoint import load_heads
    from vllm_medusa.config import MedusaConfig
    from vllm_medusa.tree.resolve import resolve_tree

    _check(args)
    _check_runner()
    texts = _prompts(args)
    # For the worker process, which vLLM starts; what the user has set stays.
    os.environ.update(engine_environment())
    checkpoint = load_heads(args.heads)
    fields = {"heads": args.heads} | ({"tree": args.tree} if args.tree else {})
    tree = resolve_tree(
        MedusaConfig(**fields), checkpoint.folder, checkpoint.spec.num_heads
    )
    output = args.output or checkpoint.folder / BATCH_TABLE_FILE
    if not os.access(output.parent, os.W_OK):
        raise ConfigError(f"cannot write {output}: name another file with --output")
    _measure(args, texts, checkpoint, tree, output)
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("steps", "repeats", "max_tokens", "max_rows", "max_model_len"):
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} must be at least 1: {getattr(args, name)}")
    if min(args.batch_sizes) < 1:
        raise ConfigError(f"--batch-sizes must be at least 1: {args.batch_sizes}")
    if not 0 <= args.margin < math.inf:
        raise ConfigError(f"--margin must be a number from 0 on: {args.margin}")


def _check_runner() -> None:
    """The worker can overrule the scheduler on Model Runner V1 only: V2's asynchronous
    scheduler has placed the drafts of a step before the worker hears of it."""
    from vllm import envs
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or envs.VLLM_USE_V2_MODEL_RUNNER:
        raise UnsupportedError(
            "calibrate measures on vLLM's CPU backend with Model Runner V1, and this "
            "machine runs V2: measure with `python -m benchmarks.gpu.bench` of a "
            "clone, and write num_speculative_tokens_per_batch_size by hand"
        )


def _prompts(args: argparse.Namespace) -> tuple[str, ...]:
    from vllm_medusa.calibration.prompts import PROMPTS
    from vllm_medusa.prompts import read_prompts

    return PROMPTS if args.prompts is None else read_prompts(args.prompts)


def _model(name: str) -> str:
    if name != "default":
        return name
    from vllm_medusa.default_model import model_path

    return str(model_path())


def _measure(
    args: argparse.Namespace,
    texts: Sequence[str],
    checkpoint: HeadsCheckpoint,
    tree: TokenTree,
    output: Path,
) -> None:
    from rich.console import Console
    from rich.table import Table
    from vllm import LLM

    from vllm_medusa.calibration import report
    from vllm_medusa.calibration.measure import StepTimer, measure_step_costs
    from vllm_medusa.calibration.table import choose_table
    from vllm_medusa.calibration.tokens import usable_node_counts
    from vllm_medusa.calibration.worker import EXTENSION
    from vllm_medusa.prompts import user_turn_ids

    batch_sizes = sorted(set(args.batch_sizes))
    llm = LLM(
        _model(args.model),
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        max_num_seqs=max(*batch_sizes, 4),
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=False,
        worker_extension_cls=EXTENSION,
        speculative_config={
            "method": "medusa",
            "model": str(checkpoint.path),
            "tree": [list(path) for path in tree.paths],
            "num_speculative_tokens_per_batch_size": None,
        },
    )
    tokenizer: Any = llm.get_tokenizer()
    prompts = [user_turn_ids(tokenizer, text) for text in texts]
    longest = args.max_model_len - max(len(prompt) for prompt in prompts)
    if longest < 1:
        raise ConfigError(
            f"--max-model-len {args.max_model_len} leaves no room after the longest "
            f"prompt of {args.max_model_len - longest} tokens: raise it"
        )
    console = Console()
    counts = usable_node_counts(NODE_COUNTS, tree.num_nodes)
    tokens = _tokens_per_step(args, llm, prompts, counts, checkpoint.folder, tree)
    shown = ", ".join(f"{n}: {value:.2f}" for n, value in tokens.items())
    console.print(f"tokens per step by nodes: {shown}")
    costs = measure_step_costs(
        StepTimer(llm, prompts, longest),
        batch_sizes,
        counts,
        tokens,
        max_rows=args.max_rows,
        steps=args.steps,
        repeats=args.repeats,
        progress=console.print,
    )
    table = choose_table(costs, tokens, args.margin)
    settings = {
        "dtype": args.dtype,
        "margin": args.margin,
        "steps": args.steps,
        "repeats": args.repeats,
        "tree_nodes": tree.num_nodes,
        "threads": os.environ.get("VLLM_CPU_OMP_THREADS_BIND"),
    }
    report.write_batch_table(output, table, costs, tokens, settings)
    columns, rows = report.speedup_rows(costs, tokens)
    shown_table = Table(*columns, title="speed-up over plain decoding")
    for row in rows:
        shown_table.add_row(*row)
    console.print(shown_table)
    for low, high, nodes in table:
        console.print(f"{low} to {high} running request(s): {nodes} node(s)")
    console.print(str(output))


def _tokens_per_step(
    args: argparse.Namespace,
    llm: Any,
    prompts: list[list[int]],
    counts: list[int],
    folder: Path,
    tree: TokenTree,
) -> dict[int, float]:
    """By the heads' accuracies and one run; without accuracies by a run for each."""
    from vllm_medusa.calibration.measure import measure_tokens_per_step
    from vllm_medusa.calibration.tokens import scale_expected
    from vllm_medusa.tree import covers, expected_tokens, load_accuracies

    path = folder / ACCURACIES_FILE
    accuracies = load_accuracies(path) if path.exists() else None
    if accuracies is None or not covers(accuracies, tree):
        return measure_tokens_per_step(llm, prompts, counts, args.max_tokens)
    measured = measure_tokens_per_step(llm, prompts, counts[-1:], args.max_tokens)
    expected = {n: expected_tokens(tree.truncate(n), accuracies) for n in [0, *counts]}
    return scale_expected(expected, counts[-1], measured[counts[-1]])
