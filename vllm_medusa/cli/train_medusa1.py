# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa train --stage medusa1`: the base model stays as it is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_medusa.train.options import TrainOptions


def base_of(model: str) -> tuple[str, str | None]:
    """Where the base model is, and what the files call it if not that."""
    if model != "default":
        return model, None
    from vllm_medusa import default_model

    return str(default_model.model_path()), default_model.HUB_ID


def work_of(args: argparse.Namespace) -> Path:
    """The folder that a run goes on from."""
    work: Path | None = args.work
    return work or args.output.with_name(f"{args.output.name}.work")


def make_options(args: argparse.Namespace) -> TrainOptions:
    """The options that the arguments stand for.

    Raises:
        ConfigError: a value is out of its range.
    """
    from vllm_medusa.train.compute_options import ComputeOptions
    from vllm_medusa.train.fit_options import FitOptions
    from vllm_medusa.train.generate import GenerateOptions
    from vllm_medusa.train.options import HeadsOptions, TrainOptions

    model, base_name = base_of(args.model)
    return TrainOptions(
        model=model,
        base_name=base_name,
        output=args.output,
        work=work_of(args),
        prompts=tuple(args.prompts),
        answers=tuple(args.answers),
        evaluation_prompts=args.evaluation_prompts,
        held_out=args.held_out,
        tree_nodes=args.tree_nodes,
        generate=GenerateOptions(
            num_tokens=args.tokens,
            temperatures=tuple(args.temperatures),
            max_answer_tokens=args.answer_tokens,
            round_size=args.round,
            written_share=args.written_prompts,
            dtype=args.generate_dtype,
            max_model_len=args.max_model_len,
            seed=args.seed,
        ),
        heads=HeadsOptions(
            num_heads=args.num_heads,
            num_layers=args.num_layers,
            block=args.block,
            intermediate_size=args.intermediate_size,
            projection=args.projection,
            rank=args.rank,
            draft_vocab=args.draft_vocab,
        ),
        fit=FitOptions(
            epochs=args.epochs,
            batch_size=args.batch_size,
            sequence_length=args.sequence_length,
            learning_rate=args.learning_rate,
            warmup=args.warmup,
            weight_decay=args.weight_decay,
            dropout=args.dropout,
            hard_weight=args.hard_weight,
            head_decay=args.head_decay,
            sampled_vocab=args.sampled_vocab,
            average=args.average,
            seed=args.seed,
        ),
        compute=ComputeOptions(
            hidden_states=args.hidden_states,
            quantization=args.quantization,
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            fsdp=args.fsdp,
        ),
    )


def run(args: argparse.Namespace) -> int:
    """Train, and print what was measured.

    Raises:
        MedusaError: as `pipeline.train`.
    """
    from vllm_medusa.train.pipeline import answer_only, train
    from vllm_medusa.train.processes import started
    from vllm_medusa.train.progress import RichProgress

    options = make_options(args)
    with started() as processes, RichProgress(processes.is_first) as progress:
        if args.answers_only:
            answer_only(options, progress, processes)
            print(f"answers written to {options.work}")
            return 0
        command = ["vllm-medusa", *sys.argv[1:]]
        recipe = train(options, progress, command, processes)
    if processes.is_first:
        for name, report in recipe["measured"].items():
            print_report(name, report)
        print(f"heads written to {options.output}")
    return 0


def print_report(name: str, report: Mapping[str, Any]) -> None:
    """Print accuracies and tokens per step of one set of answers."""
    print(f"{name}, before loops ({report['positions_before_loops']} positions):")
    for head, row in enumerate(report["accuracy_before_loops"], start=1):
        tops = "  ".join(f"top-{n} {sum(row[:n]):.3f}" for n in (1, 2, 3, 5, 8))
        print(f"  head {head}: {tops}")
    steps = report["tokens_per_step_before_loops"]
    print("  tokens per step: ", end="")
    print(", ".join(f"{tree} {value:.2f}" for tree, value in steps.items()))
