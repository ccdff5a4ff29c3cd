# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa train`: heads for a base model, from prompts to a folder."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from vllm_medusa.cli import train_medusa2
from vllm_medusa.cli.train_scope import check_scope, mark_defaults

NAME = "train"
HELP = "train Medusa heads for a base model"

STAGES = {
    "medusa1": "vllm_medusa.cli.train_medusa1",
    "medusa2": "vllm_medusa.cli.train_medusa2",
}
"""Modules with `run(args) -> int`, by the value of --stage."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `train`."""
    parser.add_argument(
        "model",
        help="folder or Hugging Face id of an instruction-tuned model; "
        '"default" is the default model',
    )
    parser.add_argument(
        "--stage",
        choices=tuple(STAGES),
        default="medusa1",
        help="medusa1: heads for a frozen base; medusa2: heads and base together",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder of the heads; with medusa2, of heads and backbone",
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
    _add_compute_arguments(parser.add_argument_group("how the work is done"))
    train_medusa2.add_arguments(parser.add_argument_group("stage medusa2 only"))
    mark_defaults(parser)


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
        help="answers made earlier (an answers.jsonl, or what `distill` wrote) to be "
        "included; repeatable. With it and without --prompts none are generated",
    )
    group.add_argument(
        "--answers-only",
        action="store_true",
        help="stop once the answers are there; the same command without it, in several "
        "processes if you like, goes on",
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
        "--max-model-len",
        type=int,
        help="context of the engine (default: 1024, or more where --answers need it)",
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
    group.add_argument(
        "--batch-size",
        type=int,
        default=1024,
        help="tokens per step, of all processes together: answer tokens with cached "
        "states, tokens of packed rows with live ones",
    )
    group.add_argument(
        "--sequence-length",
        type=int,
        default=1024,
        help="tokens of a packed row of live states",
    )
    group.add_argument("--learning-rate", type=float, default=2e-3)
    group.add_argument(
        "--warmup",
        type=float,
        default=0.04,
        metavar="SHARE",
        help="share of the steps over which the learning rate rises; a cosine follows",
    )
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


def _add_compute_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--hidden-states",
        choices=("cached", "live"),
        default="cached",
        help="cached: those of vLLM's own run, kept on disk; live: the base model runs "
        "along through transformers, frozen",
    )
    group.add_argument(
        "--quantization",
        choices=("4bit", "8bit"),
        help="of a live base, by bitsandbytes",
    )
    group.add_argument(
        "--mixed-precision",
        choices=("bf16", "no"),
        default="bf16",
        help="bf16: products in bfloat16; the heads' weights are float32 either way",
    )
    group.add_argument(
        "--gradient-accumulation-steps",
        type=int,
        default=1,
        metavar="N",
        help="parts in which a process does its share of a batch, to save memory",
    )
    group.add_argument(
        "--fsdp",
        action="store_true",
        help="shard the heads, and a live base, over the processes that a launcher "
        "starts (else each holds a copy)",
    )


def run(args: argparse.Namespace) -> int:
    """Train, and print what was measured.

    Raises:
        MedusaError: an option has no effect beside the others, or as the stage's
            `run`.
    """
    check_scope(args)
    return int(importlib.import_module(STAGES[args.stage]).run(args))
