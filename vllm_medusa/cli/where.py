# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa where model|heads`: the folder of the default model or its heads."""

from __future__ import annotations

import argparse

NAME = "where"
HELP = "print the folder of the default model or heads, making it if need be"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `where`."""
    parser.add_argument(
        "what",
        choices=("model", "heads"),
        help="the default base model, or the Medusa heads trained for it",
    )


def run(args: argparse.Namespace) -> int:
    """Print the folder, nothing else, on stdout."""
    from vllm_medusa.default_model import heads_path, model_path

    find = {"model": model_path, "heads": heads_path}[args.what]
    print(find())
    return 0
