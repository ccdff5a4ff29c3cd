# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa demo`: the same prompts through plain vLLM and through Medusa."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from vllm_medusa.demo.report import Report

NAME = "demo"
HELP = "answer a few prompts with plain vLLM and with Medusa and compare"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `demo`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts to answer, one a line (default: six everyday ones)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=64,
        metavar="N",
        help="length of an answer at most (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        metavar="N",
        help="answers to each prompt by each engine (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        default="default",
        metavar="MODEL",
        help="base model, folder or hub id (default: SmolLM2-135M-Instruct)",
    )
    parser.add_argument(
        "--heads",
        default="default",
        metavar="HEADS",
        help="Medusa heads for it, folder or hub id (default: those for the default "
        "model)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        help="data type of both engines; in float32 rounding can't change a greedy "
        "token in practice (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 if all texts are identical, 1 if one differs."""
    from rich.console import Console

    from vllm_medusa.calibration.machine import describe_machine
    from vllm_medusa.demo.compare import DEFAULT_PROMPTS, Setting, compare
    from vllm_medusa.files import atomic_path
    from vllm_medusa.prompts import read_prompts

    model, heads = _model_and_heads(args.model, args.heads)
    setting = Setting(
        model=model,
        heads=heads,
        prompts=read_prompts(args.prompts or DEFAULT_PROMPTS),
        max_tokens=args.max_tokens,
        rounds=args.rounds,
        dtype=args.dtype,
    )
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    machine = describe_machine() | {"load": os.getloadavg()[0]}
    _print_setting(console, machine, model, heads)
    with console.status("starting") as status:
        report = compare(
            setting,
            progress=status.update if console.is_terminal else console.print,
        )
    _print_report(console, report)
    if args.json:
        content = {
            "model": model,
            "heads": heads,
            "dtype": setting.dtype,
            "max_tokens": setting.max_tokens,
            "machine": machine,
            **report.as_dict(),
        }
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if report.identical else 1


def _model_and_heads(model: str, heads: str) -> tuple[str, str]:
    from vllm_medusa.default_model import heads_path, model_path
    from vllm_medusa.errors import ConfigError

    if model != "default" and heads == "default":
        raise ConfigError(
            f"--model {model} needs --heads: heads fit only the model that they were "
            "trained for"
        )
    return (
        str(model_path()) if model == "default" else model,
        str(heads_path()) if heads == "default" else heads,
    )


def _print_setting(
    console: Console, machine: dict[str, Any], model: str, heads: str
) -> None:
    versions = machine["versions"]
    cores, load = machine["cores"], machine["load"]
    console.print(
        f"vllm-medusa {versions['vllm-medusa']} on vLLM {versions['vllm']}, torch "
        f"{versions['torch']}; {machine['cpu']}, {cores} cores"
    )
    console.print(f"model {model}\nheads {heads}", markup=False)
    if load > 0.5 * cores:
        console.print(
            f"This machine is busy (load {load:.1f} on {cores} cores): "
            "the texts are as good, the speeds are not.",
            style="yellow",
        )


def _print_report(console: Console, report: Report) -> None:
    from rich.table import Table

    from vllm_medusa.demo.report import tokens_per_second, tokens_per_step

    for result in report.results:
        console.print(f"\n> {result.prompt}", style="bold", markup=False)
        console.print(result.plain[0].text.strip(), markup=False)
        if not result.identical:
            console.print("with Medusa:", style="bold red")
            console.print(result.medusa[0].text.strip(), markup=False)
        same = "[green]yes[/]" if result.identical else "[red]no[/]"
        console.print(
            f"identical: {same}   plain {tokens_per_second(result.plain):.1f} tokens/s"
            f"   Medusa {tokens_per_second(result.medusa):.1f} tokens/s   tokens per "
            f"step {tokens_per_step(result.medusa):.2f}   "
            f"speed-up {result.speedup:.2f}",
        )
    table = Table(title=f"All {len(report.results)} prompts", title_justify="left")
    for column in ("", "tokens/s", "tokens per step", "speed-up"):
        table.add_column(column, justify="right" if column else "left")
    rounds = ", ".join(f"{value:.2f}" for value in report.round_speedups)
    table.add_row(
        "plain vLLM", f"{tokens_per_second(report.plain):.1f}", "1.00", "1.00"
    )
    table.add_row(
        "Medusa",
        f"{tokens_per_second(report.medusa):.1f}",
        f"{tokens_per_step(report.medusa):.2f}",
        f"{report.speedup:.2f} (by round: {rounds})",
    )
    console.print()
    console.print(table)
    same = "yes" if report.identical else "NO"
    console.print(f"identical: {same}")
