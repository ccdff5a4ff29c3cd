# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa train`: heads for a base model, from prompts to a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_medusa.train.options import TrainOptions

NAME = "train"
HELP = "train Medusa heads for a frozen base model (Medusa-1)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `train`."""
    parser.add_argument(
        "model",
        help="folder or Hugging Face id of an instruction-tuned model; "
        '"default" is the default model',
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the heads"
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="folder of answers, hidden states and checkpoints (default: OUTPUT.work); "
        "the same command goes on from what it holds",
    )
    _add_data_arguments(parser.add_argument_group("answers of the base model"))
    _add_heads_arguments(parser.add_argument_group("heads"))
    _add_fit_arguments(parser.add_argument_group("training"))


# argparse's type of a group is private; it takes arguments as the parser does.
def _add_data_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompts",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="prompts, one per line, or JSON lines with a prompt each; repeatable. "
        "Without it the model writes prompts itself, and templates give some",
    )
    group.add_argument(
        "--answers",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="answers made earlier (an answers.jsonl) to be included; repeatable",
    )
    group.add_argument(
        "--tokens", type=int, default=1_000_000, help="answer tokens to train on"
    )
    group.add_argument(
        "--temperatures",
        type=float,
        nargs="+",
        default=[0.0, 0.7],
        metavar="T",
        help="of the answers, an equal part at each",
    )
    group.add_argument("--answer-tokens", type=int, default=256, help="longest answer")
    group.add_argument(
        "--written-prompts",
        type=float,
        default=0.6,
        metavar="SHARE",
        help="share of prompts that the model writes, the rest are templates",
    )
    group.add_argument(
        "--round", type=int, default=192, help="prompts that are answered at once"
    )
    group.add_argument(
        "--generate-dtype", choices=("bfloat16", "float32"), default="bfloat16"
    )
    group.add_argument(
        "--max-model-len", type=int, default=1024, help="context of the engine"
    )
    group.add_argument(
        "--evaluation-prompts",
        type=Path,
        metavar="FILE",
        help="prompts to measure on, as --prompts takes them; never trained on",
    )
    group.add_argument(
        "--held-out",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="share of the training prompts kept for measuring",
    )


def _add_heads_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--num-heads", type=int, default=4)
    group.add_argument("--num-layers", type=int, default=1, help="blocks per head")
    group.add_argument(
        "--block", choices=("residual", "mlp", "layernorm"), default="mlp"
    )
    group.add_argument(
        "--intermediate-size", type=int, default=1152, help="inner width of mlp blocks"
    )
    group.add_argument(
        "--projection",
        choices=("shared", "single", "own", "low_rank"),
        default="single",
        help="shared: the base LM head; single: one for all heads; own: one per head",
    )
    group.add_argument("--rank", type=int, default=128, help="of a low_rank projection")
    group.add_argument(
        "--draft-vocab",
        type=int,
        default=4096,
        help="number of most frequent tokens that the heads can guess",
    )
    group.add_argument(
        "--tree-nodes", type=int, default=8, help="nodes of the tree beside the heads"
    )


def _add_fit_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=float, default=3.0)
    group.add_argument("--batch-size", type=int, default=1024, help="tokens per step")
    group.add_argument("--learning-rate", type=float, default=2e-3)
    group.add_argument("--weight-decay", type=float, default=0.01)
    group.add_argument("--dropout", type=float, default=0.0)
    group.add_argument(
        "--hard-weight",
        type=float,
        default=0.1,
        help="share of the true token in the target, the rest is the base model's "
        "distribution",
    )
    group.add_argument(
        "--head-decay", type=float, default=0.8, help="head k's loss counts this^k"
    )
    group.add_argument(
        "--sampled-vocab",
        type=int,
        default=2048,
        help="tokens that one step's softmax runs over",
    )
    group.add_argument(
        "--average",
        type=float,
        default=0.0,
        help="decay of a running average of the weights, 0 for none",
    )
    group.add_argument("--seed", type=int, default=0)


def make_options(args: argparse.Namespace) -> TrainOptions:
    """The options that the arguments stand for.

    Raises:
        ConfigError: a value is out of its range.
    """
    from vllm_medusa.train.generate import GenerateOptions
    from vllm_medusa.train.options import HeadsOptions, TrainOptions
    from vllm_medusa.train.trainer import FitOptions

    model, base_name = args.model, None
    if model == "default":
        from vllm_medusa import default_model

        model, base_name = str(default_model.model_path()), default_model.HUB_ID
    return TrainOptions(
        model=model,
        base_name=base_name,
        output=args.output,
        work=args.work or args.output.with_name(f"{args.output.name}.work"),
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
            learning_rate=args.learning_rate,
            weight_decay=args.weight_decay,
            dropout=args.dropout,
            hard_weight=args.hard_weight,
            head_decay=args.head_decay,
            sampled_vocab=args.sampled_vocab,
            average=args.average,
            seed=args.seed,
        ),
    )


def run(args: argparse.Namespace) -> int:
    """Train, and print what was measured."""
    from vllm_medusa.train.pipeline import train
    from vllm_medusa.train.progress import RichProgress

    options = make_options(args)
    with RichProgress() as progress:
        recipe = train(options, progress, ["vllm-medusa", *sys.argv[1:]])
    for name, report in recipe["measured"].items():
        print(f"{name}, before loops ({report['positions_before_loops']} positions):")
        for head, row in enumerate(report["accuracy_before_loops"], start=1):
            tops = "  ".join(f"top-{n} {sum(row[:n]):.3f}" for n in (1, 2, 3, 5, 8))
            print(f"  head {head}: {tops}")
        steps = report["tokens_per_step_before_loops"]
        print("  tokens per step: ", end="")
        print(", ".join(f"{tree} {value:.2f}" for tree, value in steps.items()))
    print(f"heads written to {options.output}")
    return 0
