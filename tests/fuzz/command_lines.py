# SPDX-License-Identifier: Apache-2.0
"""The command lines that are tried, and what each takes."""

from __future__ import annotations

COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tree show": ((), ("--heads", "--accuracies", "--nodes", "--json")),
    "tree build": (
        ("--accuracies", "accuracies.json", "--nodes", "4", "--output", "o.json"),
        ("--nodes", "--max-depth", "--max-rank", "--accuracies", "--output"),
    ),
    "inspect": (("heads",), ("--revision", "--json")),
    "convert": (
        ("heads", "converted"),
        ("--num-heads", "--draft-vocab", "--base-model", "--force", "--revision"),
    ),
    "plan": (
        ("vicuna-7b", "own:5"),
        (
            "--tp",
            "--gpu",
            "--machine",
            "--nodes",
            "--accuracies",
            "--tokens-per-step",
            "--max-model-len",
            "--max-num-seqs",
            "--gpu-memory-utilization",
        ),
    ),
    "calibrate": (
        ("none", "heads"),
        (
            "--tree",
            "--batch-sizes",
            "--nodes",
            "--margin",
            "--max-rows",
            "--steps",
            "--repeats",
            "--prompts",
            "--by-task",
            "--temperature",
            "--max-tokens",
            "--max-model-len",
            "--seed",
            "--output",
            "--plots",
        ),
    ),
    "evaluate": (
        ("--model", "none", "--heads", "heads", "--prompts", "prompts.jsonl"),
        (
            "--suite",
            "--setting",
            "--per-category",
            "--max-tokens",
            "--repeats",
            "--concurrency",
            "--seed",
            "--max-model-len",
            "--output",
            "--prompts",
        ),
    ),
    "train": (
        ("none", "--output", "trained"),
        (
            "--tokens",
            "--temperatures",
            "--answer-tokens",
            "--written-prompts",
            "--round",
            "--held-out",
            "--num-heads",
            "--num-layers",
            "--rank",
            "--epochs",
            "--intermediate-size",
            "--draft-vocab",
            "--tree-nodes",
            "--stage",
            "--batch-size",
            "--sequence-length",
            "--hidden-states",
            "--quantization",
            "--mixed-precision",
            "--gradient-accumulation-steps",
            "--learning-rate",
            "--warmup",
            "--weight-decay",
            "--dropout",
            "--hard-weight",
            "--seed",
            "--head-decay",
            "--sampled-vocab",
            "--average",
            "--max-model-len",
        ),
    ),
}
"""Command -> the words that get it anywhere, and the options that it may be given."""

FLAGS = ("--by-task", "--force", "--json")
"""Options that take no value."""
