# SPDX-License-Identifier: Apache-2.0
"""`vllm-medusa inspect`: what a heads checkpoint holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_medusa.side_files import SIDE_FILES

if TYPE_CHECKING:
    from vllm_medusa.checkpoint import HeadsCheckpoint

NAME = "inspect"
HELP = "show what a heads checkpoint holds, and whether it is sound"

_BLOCKS = {
    "residual": "residual, x + SiLU(Wx + b)",
    "mlp": "mlp, x + W2 SiLU(W1 x + b1) + b2",
    "layernorm": "layernorm, SiLU(LayerNorm(Wx + b))",
}
_PROJECTIONS = {
    "shared": "shared with the base model's LM head",
    "own": "own, one matrix per head",
    "single": "one matrix in the checkpoint for all heads",
    "low_rank": "own, low rank",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `inspect`."""
    parser.add_argument(
        "heads",
        metavar="HEADS",
        help='folder, tensor file, Hugging Face id, or "default"',
    )
    parser.add_argument("--revision", help="branch, tag or commit on Hugging Face")
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def run(args: argparse.Namespace) -> int:
    """Load the checkpoint with all checks and print what it is."""
    from vllm_medusa.checkpoint import load_heads

    report = describe(load_heads(args.heads, args.revision))
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0


def describe(checkpoint: HeadsCheckpoint) -> dict[str, Any]:
    """The facts about a checkpoint, ready for JSON; memory in bytes."""
    from vllm_medusa.checkpoint.naming import FORMATS

    spec = checkpoint.spec
    weights = [t for name, t in checkpoint.tensors.items() if name != "token_map"]
    map_bytes = 8 * (spec.draft_vocab_size or 0)
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "format_name": FORMATS[checkpoint.format],
        "num_heads": spec.num_heads,
        "num_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "block": spec.block,
        "intermediate_size": spec.intermediate_size,
        "block_bias": spec.block_bias,
        "projection": spec.projection,
        "rank": spec.rank,
        "vocab_size": spec.vocab_size,
        "draft_vocab_size": spec.draft_vocab_size,
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in weights}),
        "num_parameters": spec.num_parameters,
        "memory_bytes": {
            "float32": 4 * spec.num_parameters + map_bytes,
            "bfloat16": 2 * spec.num_parameters + map_bytes,
        },
        "base_model": checkpoint.base_model,
        "side_files": [
            name for name in SIDE_FILES if Path(checkpoint.folder, name).is_file()
        ],
        "notes": list(checkpoint.notes),
    }


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in _rows(report):
        table.add_row(label, Text(value))
    console = Console()
    console.print(table)
    for note in report["notes"]:
        console.print(Text(f"note: {note}", style="yellow"))


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    bias = "with bias" if report["block_bias"] else "without bias"
    width = report["intermediate_size"]
    block = f"{_BLOCKS[report['block']]}, {bias}"
    if width is not None:
        block += f", inner width {width:,}"
    projection = _PROJECTIONS[report["projection"]]
    if report["rank"] is not None:
        projection += f" {report['rank']}"
    vocab, draft = report["vocab_size"], report["draft_vocab_size"]
    memory = report["memory_bytes"]
    return [
        ("heads file", report["path"]),
        ("format", f"{report['format']} ({report['format_name']})"),
        ("base model", report["base_model"] or "not named"),
        ("heads", str(report["num_heads"])),
        ("layers per head", str(report["num_layers"])),
        ("hidden size", f"{report['hidden_size']:,}"),
        ("block", block),
        ("projection", projection),
        ("vocabulary", "that of the base model" if vocab is None else f"{vocab:,}"),
        ("draft vocabulary", "all tokens" if draft is None else f"{draft:,} tokens"),
        ("parameters", f"{report['num_parameters']:,}"),
        ("stored as", ", ".join(report["dtypes"])),
        (
            "memory",
            f"{memory['float32'] / 2**20:.1f} MiB in float32, "
            f"{memory['bfloat16'] / 2**20:.1f} MiB in bfloat16",
        ),
        (
            "beside it",
            ", ".join(f"{name} ({SIDE_FILES[name]})" for name in report["side_files"])
            or "nothing",
        ),
    ]
