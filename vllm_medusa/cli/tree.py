# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa tree show|build`: draw a token tree, or build the best one."""

from __future__ import annotations

import argparse
import json
from typing import Any

from vllm_medusa.errors import ConfigError, TreeError
from vllm_medusa.files import atomic_path
from vllm_medusa.tree import (
    TokenTree,
    covers,
    expected_tokens,
    load_accuracies,
    node_gains,
    optimal,
    parse_tree,
)
from vllm_medusa.tree.accuracies import Accuracies

NAME = "tree"
HELP = "draw a token tree, or build the best one for measured accuracies"

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of nodes whose expected tokens per step `tree build` prints."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tree show` and `tree build`."""
    commands = parser.add_subparsers(dest="tree_command", required=True)

    show = commands.add_parser("show", help="draw a tree in the terminal")
    show.add_argument(
        "spec",
        nargs="?",
        metavar="SPEC",
        help="chain, chain:N, optimal:N, widths such as 1x7x6 (root, head 1, head 2), "
        "a published name, a JSON file or a list of paths; left out: the tree that "
        "HEADS get by default",
    )
    show.add_argument(
        "--heads",
        help="folder or Hugging Face id of heads, default, or the value of "
        "--speculative-model",
    )
    show.add_argument("--accuracies", metavar="FILE", help="accuracies.json")
    show.add_argument("--nodes", type=int, metavar="N", help="cut to the first N nodes")
    show.add_argument("--json", action="store_true", help="print JSON instead")

    build = commands.add_parser("build", help="write the best tree of N nodes")
    build.add_argument(
        "--accuracies", required=True, metavar="FILE", help="accuracies.json"
    )
    build.add_argument("--nodes", required=True, type=int, metavar="N")
    build.add_argument(
        "--max-depth", type=int, metavar="D", help="use only the first D heads"
    )
    build.add_argument(
        "--max-rank", type=int, metavar="R", help="use only ranks 0 to R"
    )
    build.add_argument("--output", required=True, metavar="FILE", help="tree.json")


def run(args: argparse.Namespace) -> int:
    """Draw or build a tree.

    Raises:
        MedusaError: the tree, the heads or a file is not valid.
    """
    return _show(args) if args.tree_command == "show" else _build(args)


def _show(args: argparse.Namespace) -> int:
    from rich.console import Console

    from vllm_medusa.tree.render import draw, summary, summary_text

    tree, accuracies = _chosen_tree(args)
    if args.nodes is not None:
        tree = tree.truncate(args.nodes)
    gains = None
    if accuracies is not None and covers(accuracies, tree):
        gains = node_gains(tree, accuracies)
    totals = summary(tree, gains)
    if args.json:
        rows: dict[str, Any] = {
            "paths": tree.paths,
            "parents": tree.parents,
            "ranks": tree.ranks,
            "depths": tree.depths,
            "gains": gains,
        }
        print(json.dumps(totals | rows))
        return 0
    console = Console(highlight=False)
    # rich would fold the labels of a tree that is deeper than the terminal is wide.
    console.width = max(console.width, 4 * tree.max_depth + 60)
    console.print(draw(tree, gains))
    console.print(summary_text(totals), soft_wrap=True)
    if accuracies is not None and gains is None:
        console.print("expected tokens per step  unknown: no accuracies of some nodes")
    return 0


def _chosen_tree(args: argparse.Namespace) -> tuple[TokenTree, Accuracies | None]:
    given: Accuracies | None = None
    if args.accuracies is not None:
        given = load_accuracies(args.accuracies)
    if args.heads is None:
        if args.spec is None:
            raise ConfigError("tree show needs a tree, or --heads to show theirs")
        num_heads = None if given is None else len(given)
        return parse_tree(args.spec, num_heads=num_heads, accuracies=given), given

    from vllm_medusa.checkpoint import load_heads
    from vllm_medusa.config import MedusaConfig
    from vllm_medusa.config_text import PREFIX
    from vllm_medusa.tree.resolve import accuracies_beside, resolve_tree

    if args.heads.startswith(PREFIX):
        config = MedusaConfig.parse(args.heads)
    else:
        config = MedusaConfig(heads=args.heads)
    checkpoint = load_heads(config.heads, config.revision, num_heads=config.num_heads)
    num_heads = checkpoint.spec.num_heads
    if given is None:
        given = accuracies_beside(checkpoint.folder)
    if args.spec is None:
        return resolve_tree(config, checkpoint.folder, num_heads), given
    return parse_tree(args.spec, num_heads=num_heads, accuracies=given), given


def _build(args: argparse.Namespace) -> int:
    accuracies = load_accuracies(args.accuracies)
    limits = {"max_depth": args.max_depth, "max_rank": args.max_rank}
    tree = optimal(accuracies, args.nodes, **limits)
    expected = expected_tokens(tree, accuracies)
    content = {
        "paths": tree.paths,
        "source": f"optimal:{args.nodes} for measured accuracies",
        "expected_tokens_per_step": round(expected, 4),
    }
    with atomic_path(args.output) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")

    print("nodes  depth  expected tokens per step")
    for size in sorted({*SIZES, args.nodes}):
        try:
            other = optimal(accuracies, size, **limits)
        except TreeError:
            break  # the table is too small for so many nodes
        gain = expected_tokens(other, accuracies)
        mark = "  <- written" if size == args.nodes else ""
        print(f"{size:5}  {other.max_depth:5}  {gain:.3f}{mark}")
    print(f"wrote {args.output}")
    return 0
