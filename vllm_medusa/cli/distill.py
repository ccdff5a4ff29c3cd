# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa distill`: a model writes the data that its heads are trained on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_medusa.distill.options import DistillOptions

NAME = "distill"
HELP = "let a model answer prompts, as data to train its heads on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `distill`."""
    parser.add_argument(
        "model",
        help="folder or Hugging Face id of an instruction-tuned model; "
        '"default" is the default model',
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the shards and manifest.json; the same command goes on from "
        "what it holds",
    )
    _add_prompt_arguments(parser.add_argument_group("prompts"))
    _add_answer_arguments(parser.add_argument_group("answers"))
    _add_engine_arguments(
        parser.add_argument_group("engine (the answers do not depend on it)")
    )


# argparse's type of a group is private; it takes arguments as the parser does.
def _add_prompt_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="KIND[:LOCATION][,key=value…]",
        help="where prompts come from; repeatable. prompts:FILE (one per line, or JSON "
        "lines), sharegpt:FILE, hf:DATASET (a Hugging Face id, file or folder; split=, "
        "config=, revision=, column=), templates, self (the model writes them); each "
        "with weight= (its share of the answers) and task= (its name in the counts). "
        "Default: self,weight=0.6 and templates,weight=0.4",
    )
    group.add_argument(
        "--num-prompts", type=int, metavar="N", help="stop after so many prompts"
    )
    group.add_argument(
        "--num-tokens", type=int, metavar="N", help="stop at so many answer tokens"
    )
    group.add_argument(
        "--turns",
        type=int,
        default=1,
        metavar="N",
        help="answers per conversation at most; the model writes the user's later "
        "turns where the data have none (default: %(default)s)",
    )
    group.add_argument("--seed", type=int, default=0, help="of everything random")


def _add_answer_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--temperatures",
        type=float,
        nargs="+",
        default=[0.0, 0.7],
        metavar="T",
        help="dealt in turn to prompts and samples (default: 0 0.7)",
    )
    group.add_argument("--top-p", type=float, default=1.0, metavar="P")
    group.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="0 for all tokens"
    )
    group.add_argument(
        "--samples",
        type=int,
        default=1,
        metavar="N",
        help="conversations per prompt (default: %(default)s)",
    )
    group.add_argument(
        "--max-answer-tokens", type=int, default=512, metavar="N", help="longest answer"
    )
    group.add_argument(
        "--max-user-tokens",
        type=int,
        default=128,
        metavar="N",
        help="longest turn that the model writes as the user",
    )
    group.add_argument(
        "--max-model-len", type=int, default=2048, metavar="N", help="context"
    )
    group.add_argument("--dtype", default="auto", help="of the model, as vLLM takes it")
    group.add_argument(
        "--shard-prompts",
        type=int,
        default=1000,
        metavar="N",
        help="prompts per file, which an interruption can lose (default: %(default)s)",
    )


def _add_engine_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-num-seqs", type=int, default=256, metavar="N", help="requests at once"
    )
    group.add_argument(
        "--kv-cache-gib", type=float, default=1.5, metavar="GIB", help="on a CPU"
    )
    group.add_argument(
        "--tensor-parallel-size", type=int, default=1, metavar="N", help="ranks"
    )
    group.add_argument(
        "--speculative-model",
        metavar="medusa:HEADS",
        help="heads that speed it up, as `vllm serve` takes them",
    )
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run in a Ray cluster through Ray Data: its address, auto (the one that "
        "runs here, else one that is started) or local (one that is started)",
    )
    group.add_argument(
        "--ray-engines",
        type=int,
        metavar="N",
        help="engines in the cluster (default: as many as it has room for)",
    )


def make_options(args: argparse.Namespace) -> DistillOptions:
    """The options that the arguments stand for.

    Raises:
        ConfigError: a value is out of its range.
    """
    from vllm_medusa.distill.options import (
        DEFAULT_SOURCES,
        DistillOptions,
        EngineOptions,
    )
    from vllm_medusa.distill.source_option import SourceOption

    options = DistillOptions(
        model=args.model,
        output=args.output,
        sources=tuple(map(SourceOption.parse, args.source)) or DEFAULT_SOURCES,
        turns=args.turns,
        temperatures=tuple(args.temperatures),
        top_p=args.top_p,
        top_k=args.top_k,
        samples=args.samples,
        max_answer_tokens=args.max_answer_tokens,
        max_user_tokens=args.max_user_tokens,
        num_tokens=args.num_tokens,
        num_prompts=args.num_prompts,
        shard_prompts=args.shard_prompts,
        seed=args.seed,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        engine=EngineOptions(
            max_num_seqs=args.max_num_seqs,
            kv_cache_gib=args.kv_cache_gib,
            tensor_parallel_size=args.tensor_parallel_size,
            speculative_model=args.speculative_model,
            ray=args.ray,
            ray_engines=args.ray_engines,
        ),
    )
    if args.model != "default":
        return options
    from dataclasses import replace

    from vllm_medusa import default_model

    model, name = str(default_model.model_path()), default_model.HUB_ID
    return replace(options, model=model, base_name=name)


def run(args: argparse.Namespace) -> int:
    """Make the answers, and print what there is."""
    from vllm_medusa.distill.run import distill
    from vllm_medusa.train.progress import RichProgress

    options = make_options(args)
    with RichProgress() as progress:
        manifest = distill(options, progress)
    totals = manifest.totals()
    print(
        f"{totals['answers']} answers with {totals['tokens']} tokens to "
        f"{totals['prompts']} prompts in {options.output}"
    )
    for name in ("source", "task", "temperature", "turn", "finish"):
        counts = totals[f"answers_by_{name}"]
        print(f"  by {name}: {', '.join(f'{k} {n}' for k, n in counts.items())}")
    if totals["left_out"]:
        left_out = (f"{number} {why}" for why, number in totals["left_out"].items())
        print(f"  left out: {', '.join(left_out)}")
    print(
        f"train on them by: vllm-medusa train {args.model} --output HEADS "
        f"--answers {options.output}"
    )
    return 0
