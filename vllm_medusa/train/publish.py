# SPDX-License-Identifier: Apache-2.0
"""Writing trained heads and all that belongs beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_medusa.checkpoint import save_heads
from vllm_medusa.json_file import write_json
from vllm_medusa.side_files import ACCURACIES_FILE, TREE_FILE
from vllm_medusa.train.curve import draw_curve
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.tree import TokenTree


def publish(
    folder: Path,
    heads: TrainableHeads,
    history: Sequence[Mapping[str, Any]],
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
    draw_curve(history, folder / "curve.png")
