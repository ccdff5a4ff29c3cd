# SPDX-License-Identifier: Apache-2.0
"""Writing trained heads and all that belongs beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_medusa.checkpoint import save_heads
from vllm_medusa.files import atomic_path
from vllm_medusa.side_files import ACCURACIES_FILE, TREE_FILE
from vllm_medusa.train.curve import draw_curve
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.trainer import Trainer
from vllm_medusa.tree import TokenTree


def publish(
    folder: Path,
    heads: TrainableHeads,
    trainer: Trainer,
    *,
    base_name: str,
    accuracies: Mapping[str, Any],
    tree: TokenTree,
    recipe: Mapping[str, Any],
) -> None:
    """Write the checkpoint, accuracies.json, tree.json, curve.png and recipe.json."""
    save_heads(folder, heads.spec, heads.tensors(), base_model=base_name)
    write_json(folder / ACCURACIES_FILE, accuracies)
    write_json(
        folder / TREE_FILE,
        {
            "paths": [list(path) for path in tree.paths],
            "source": f"optimal:{tree.num_nodes} for accuracies.json",
        },
    )
    write_json(folder / "recipe.json", recipe)
    draw_curve(trainer.history, folder / "curve.png")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write an object as JSON, its lists of numbers on one line each."""
    with atomic_path(path) as temporary:
        temporary.write_text(_dump(data, 0) + "\n", encoding="utf-8")


def _dump(value: Any, level: int) -> str:
    """JSON with indents for nested values, innermost lists on one line."""
    flat = json.dumps(value)
    nested = isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(v, list | dict) for v in value)
    )
    if not nested or len(flat) + 2 * level <= 80:
        return flat
    pad, end = "  " * (level + 1), "  " * level
    if isinstance(value, dict):
        items = [f"{json.dumps(k)}: {_dump(v, level + 1)}" for k, v in value.items()]
        left, right = "{", "}"
    else:
        items = [_dump(item, level + 1) for item in value]
        left, right = "[", "]"
    return f"{left}\n{pad}" + f",\n{pad}".join(items) + f"\n{end}{right}"
