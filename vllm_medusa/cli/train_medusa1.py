# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa train --stage medusa1`: the base model stays as it is."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from vllm_medusa.cli.train_options import (
    base_of,
    compute_options,
    fit_options,
    heads_options,
    work_of,
)
from vllm_medusa.cli.train_report import print_report

if TYPE_CHECKING:
    from vllm_medusa.train.options import TrainOptions


def make_options(args: argparse.Namespace) -> TrainOptions:
    """The options that the arguments stand for.

    Raises:
        ConfigError: a value is out of its range.
    """
    from vllm_medusa.train.generate import GenerateOptions
    from vllm_medusa.train.options import TrainOptions

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
        heads=heads_options(args),
        fit=fit_options(args),
        compute=compute_options(args, args.hidden_states),
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
