# SPDX-License-Identifier: Apache-2.0
"""Finding a heads checkpoint: a folder, a file, or a Hugging Face repository."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vllm_medusa.checkpoint.naming import is_heads_tensor
from vllm_medusa.errors import CheckpointError
from vllm_medusa.json_file import read_json

# In order of preference; heads of their own before a model that contains them.
WEIGHT_FILES = (
    "medusa_lm_head.safetensors",
    "medusa_lm_head.pt",
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# The index of a mixture of experts lists tens of thousands of tensors.
_MAX_JSON_BYTES = 64 << 20
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# At most 96 characters, as the hub has it.
_HUB_ID = re.compile(r"^(?=.{1,96}$)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def resolve_heads(name: str | Path, revision: str | None = None) -> Path:
    """The local folder or file of the heads `name`.

    Args:
        name: "default" (the heads shipped for the default model), a folder, a
            tensor file, or a Hugging Face repository id, of which only the files
            that hold heads are fetched.
        revision: branch, tag or commit of a Hugging Face repository.

    Raises:
        CheckpointError: nothing is there, or it cannot be fetched.
    """
    if name == "default":
        from vllm_medusa.default_model import heads_path

        return Path(heads_path())
    path, text = Path(name).expanduser(), str(name)
    if text and _exists(path):
        if revision is not None:
            raise CheckpointError(
                f"revision {revision!r} is for Hugging Face ids, but {path} is local"
            )
        return path
    if path.suffix in _SUFFIXES or not _HUB_ID.match(text):
        raise CheckpointError(
            f"heads {text!r} do not exist: give a folder, a tensor file, a Hugging "
            "Face id (organisation/name) or 'default'"
        )
    from vllm_medusa.checkpoint.hub import fetch_heads

    return fetch_heads(text, revision)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long for a file
        return False


def choose_weights(names: Collection[str]) -> str | None:
    """The file among `names` to read heads from; an index stands for its shards."""
    for name in WEIGHT_FILES:
        if name in names:
            return name
    others = sorted(n for n in names if n.endswith(_SUFFIXES) and "/" not in n)
    return others[0] if len(others) == 1 else None


def weight_files(path: Path) -> list[Path]:
    """Files to open for the heads at `path` (folder or file), sharded or not.

    Raises:
        CheckpointError: no or several candidate files, or a damaged index.
    """
    if path.is_file():
        if path.name.endswith(".index.json"):
            return [path.parent / shard for shard in heads_shards(path)]
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"heads {str(path)!r} do not exist")
    chosen = choose_weights([entry.name for entry in path.iterdir()])
    if chosen is None:
        raise CheckpointError(
            f"{path} holds no heads file: one of {', '.join(WEIGHT_FILES)}, or a "
            "single other .safetensors or .pt file, is expected"
        )
    return weight_files(path / chosen) if chosen.endswith("json") else [path / chosen]


def heads_shards(index: Path) -> list[str]:
    """Shards of an index that hold heads; all of them if no name is prefixed.

    Raises:
        CheckpointError: the index is damaged or points outside its folder.
    """
    weight_map = read_object(index, "index").get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CheckpointError(f"{index} has no weight_map of tensors to files")
    shards = {shard for name, shard in weight_map.items() if is_heads_tensor(name)}
    shards = shards or set(weight_map.values())
    outside = sorted(shard for shard in shards if Path(shard).name != shard)
    if outside:
        raise CheckpointError(f"{index} points outside its folder: {outside[0]!r}")
    return sorted(shards)


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; `what` it holds goes into the error message.

    Raises:
        CheckpointError: unreadable, larger than `_MAX_JSON_BYTES`, or no object.
    """
    content = read_json(path, what, CheckpointError, _MAX_JSON_BYTES)
    if not isinstance(content, dict):
        raise CheckpointError(f"{what} file {path} holds no JSON object")
    return content
