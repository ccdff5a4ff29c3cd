# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa train --stage medusa2`: heads and backbone together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_medusa.cli.train_options import (
    base_of,
    compute_options,
    fit_options,
    heads_options,
    work_of,
)
from vllm_medusa.cli.train_report import print_report
from vllm_medusa.errors import ConfigError

if TYPE_CHECKING:
    from vllm_medusa.train.medusa2.options import Medusa2Options


# argparse's type of a group is private; it takes arguments as the parser does.
def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the arguments that only this stage has."""
    group.add_argument(
        "--schedule",
        choices=("two-stage", "one-stage"),
        default="two-stage",
        help="two-stage: heads alone, then both; one-stage: both, the weight of the "
        "heads' loss rising from 0 like a sine",
    )
    group.add_argument(
        "--heads",
        type=Path,
        metavar="FOLDER",
        help="heads to begin with, such as those of stage medusa1; replaces the first "
        "of two stages",
    )
    group.add_argument(
        "--heads-epochs",
        type=float,
        default=1.0,
        help="passes over the answers with heads alone; --epochs are those with both",
    )
    group.add_argument(
        "--base-loss",
        choices=("kl", "cross-entropy"),
        default="kl",
        help="of the backbone: kl to the original model, or cross-entropy with the "
        "answers",
    )
    group.add_argument(
        "--heads-weight",
        type=float,
        metavar="LAMBDA",
        help="weight of the heads' loss beside the backbone's (default: 0.2 two-stage, "
        "0.01 one-stage)",
    )
    group.add_argument(
        "--backbone-learning-rate",
        type=float,
        help="peak rate (default: 1e-4 with --base-loss kl, 5e-4 with cross-entropy, "
        "2e-5 with full weights); --learning-rate is that of heads alone",
    )
    group.add_argument(
        "--head-learning-rate-multiple",
        type=float,
        default=4.0,
        help="learning rate of the heads beside the backbone, as its multiple",
    )
    group.add_argument(
        "--adapters",
        choices=("lora", "full"),
        default="lora",
        help="lora: low-rank adapters of all linear layers; full: all weights",
    )
    group.add_argument("--lora-rank", type=int, default=32)
    group.add_argument("--lora-alpha", type=int, default=16)
    group.add_argument("--lora-dropout", type=float, default=0.05)
    group.add_argument(
        "--lora-lm-head", action="store_true", help="an adapter for the LM head too"
    )
    group.add_argument(
        "--untie",
        action="store_true",
        help="give a model whose LM head is its token embedding an LM head of its own",
    )
    group.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="compute activations again in the backward pass, to save memory",
    )
    group.add_argument(
        "--max-perplexity-increase",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="stop when the backbone's perplexity on held-out answers is more than "
        "this above the original's (default: 0.02, that is 2 %%)",
    )
    group.add_argument(
        "--min-agreement",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="stop when the backbone's most probable token is the original's at fewer "
        "held-out positions",
    )
    group.add_argument(
        "--measure-every",
        type=int,
        default=50,
        metavar="STEPS",
        help="steps between two measurements; a state within the bounds is saved",
    )
    group.add_argument(
        "--export-last-good",
        action="store_true",
        help="don't train: write the last state that was saved",
    )
    group.add_argument(
        "--save-dtype",
        choices=("auto", "bfloat16", "float16", "float32"),
        default="auto",
        help="of the merged backbone; auto: the original's",
    )


def make_options(args: argparse.Namespace) -> Medusa2Options:
    """The options that the arguments stand for.

    Raises:
        ConfigError: a value is out of its range, or is of another stage.
        UnsupportedError: as `Medusa2Options`.
    """
    from vllm_medusa.train.medusa2.options import (
        AdapterOptions,
        JointOptions,
        Medusa2Options,
    )
    from vllm_medusa.train.medusa2.quality import Bounds

    if args.prompts or args.answers_only:
        raise ConfigError(
            "stage medusa2 makes no answers: make them with 'vllm-medusa distill' and "
            "give them with --answers, instead of --prompts or --answers-only"
        )
    model, base_name = base_of(args.model)
    return Medusa2Options(
        model=model,
        base_name=base_name,
        output=args.output,
        work=work_of(args),
        answers=tuple(args.answers),
        evaluation_prompts=args.evaluation_prompts,
        held_out=args.held_out,
        tree_nodes=args.tree_nodes,
        heads_folder=args.heads,
        heads=heads_options(args),
        adapters=AdapterOptions(
            kind=args.adapters,
            rank=args.lora_rank,
            alpha=args.lora_alpha,
            dropout=args.lora_dropout,
            lm_head=args.lora_lm_head,
            untie=args.untie,
        ),
        joint=JointOptions(
            schedule=args.schedule,
            base_loss=args.base_loss,
            heads_weight=args.heads_weight,
            heads_epochs=args.heads_epochs,
            backbone_learning_rate=args.backbone_learning_rate,
            head_multiple=args.head_learning_rate_multiple,
            checkpointing=args.gradient_checkpointing,
        ),
        fit=fit_options(args, measure_every=args.measure_every),
        compute=compute_options(args, "live"),
        bounds=Bounds(args.max_perplexity_increase, args.min_agreement),
        saved_dtype=args.save_dtype,
        export_last_good=args.export_last_good,
    )


def run(args: argparse.Namespace) -> int:
    """Train, and print what was measured.

    Raises:
        MedusaError: as `medusa2.pipeline.train`.
    """
    from vllm_medusa.train.medusa2.pipeline import train
    from vllm_medusa.train.processes import started
    from vllm_medusa.train.progress import RichProgress

    options = make_options(args)
    with started() as processes, RichProgress(processes.is_first) as progress:
        command = ["vllm-medusa", *sys.argv[1:]]
        recipe = train(options, progress, command, processes)
    if processes.is_first:
        _print_quality(recipe["quality"])
        print_report("held_out", recipe["measured"]["held_out"])
        print(
            f"backbone written to {options.output / 'backbone'}, heads to "
            f"{options.output / 'heads'}"
        )
    return 0


def _print_quality(report: Mapping[str, Any]) -> None:
    before, after = report["before"], report["after"]
    first, last = before["perplexity"], after["perplexity"]
    perplexity = "is not finite"
    if first is not None and last is not None:
        perplexity = f"{first:.4f} before, {last:.4f} after ({last / first - 1:+.2%})"
    print(
        f"backbone on held-out answers ({after['positions']} positions): perplexity "
        f"{perplexity}; most probable token as before at {after['agreement']:.2%}"
    )
