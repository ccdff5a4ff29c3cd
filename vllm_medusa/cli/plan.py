# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa plan`: memory and step cost of an engine, before anything loads."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

NAME = "plan"
HELP = "work out memory, KV cache and step cost of an engine, without loading it"

_DOES_NOT_FIT = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Models, machine, engine options, and what the estimate assumes."""
    parser.add_argument(
        "base",
        metavar="BASE",
        help="folder, Hugging Face id, default, or a built-in shape: vicuna-7b, -13b, "
        "-33b, llama-2-7b, -13b, -70b, llama-3.1-8b, -70b, mistral-7b",
    )
    parser.add_argument(
        "heads",
        metavar="HEADS",
        help="folder, Hugging Face id, default, a text medusa:HEADS?key=value, or a "
        "shape: own:5 (5 heads with vocabulary matrices of their own), shared:5 (on "
        "the base's LM head), own:5x2 (with 2 layers)",
    )
    parser.add_argument("--revision", help="of BASE on Hugging Face")
    parser.add_argument("--gpu", default="H100", help="its name, or cpu (default H100)")
    parser.add_argument("--machine", type=Path, metavar="FILE", help="JSON of a device")
    parser.add_argument(
        "--tp",
        "--tensor-parallel-size",
        type=int,
        default=1,
        metavar="N",
        help="ranks (default 1)",
    )
    engine = parser.add_argument_group("engine", "as vLLM names them")
    engine.add_argument(
        "--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32")
    )
    engine.add_argument("--quantization", choices=("none", "fp8", "awq", "gptq"))
    engine.add_argument(
        "--kv-cache-dtype",
        default="auto",
        choices=("auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"),
    )
    for option in (
        "max-model-len",
        "max-num-seqs",
        "max-num-batched-tokens",
        "kv-cache-memory-bytes",
        "block-size",
    ):
        engine.add_argument(f"--{option}", type=int, metavar="N")
    engine.add_argument(
        "--gpu-memory-utilization", type=float, default=0.92, metavar="SHARE"
    )
    engine.add_argument(
        "--reserve-gib",
        type=float,
        metavar="GIB",
        help="for CUDA context, libraries, CUDA graphs (default 2, with ranks 3)",
    )
    speed = parser.add_argument_group("tree and step cost")
    speed.add_argument("--nodes", type=int, metavar="N", help="nodes of the tree")
    speed.add_argument(
        "--accuracies", type=Path, metavar="FILE", help="default: beside the heads"
    )
    speed.add_argument(
        "--tokens-per-step", type=float, metavar="X", help="that the tree gives"
    )
    speed.add_argument(
        "--context", type=int, default=1024, metavar="N", help="of each request"
    )
    speed.add_argument("--batch-sizes", type=int, nargs="+", metavar="N")
    for name, share in (("bandwidth", 0.8), ("compute", 0.6)):
        speed.add_argument(
            f"--{name}-efficiency",
            type=float,
            default=share,
            metavar="SHARE",
            help=f"of the published peak (default {share})",
        )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the plan there"
    )


def run(args: argparse.Namespace) -> int:
    """Plan, print, write; exit code 1 if the engine would not start."""
    from vllm_medusa.planning.plan import make_plan
    from vllm_medusa.planning.request import Options, resolve
    from vllm_medusa.planning.tables import print_plan

    values = {field.name: getattr(args, field.name) for field in fields(Options)}
    if values["batch_sizes"] is not None:
        values["batch_sizes"] = tuple(values["batch_sizes"])
    plan = make_plan(resolve(Options(**values)))
    if args.json is not None:
        _write(args.json, json.dumps(plan, indent=2) + "\n")
    print_plan(plan)
    return 0 if plan["fits"] else _DOES_NOT_FIT


def _write(path: Path, text: str) -> None:
    from vllm_medusa.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
