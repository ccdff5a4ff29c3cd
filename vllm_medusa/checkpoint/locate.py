# SPDX-License-Identifier: Apache-2.0
"""Finding a heads checkpoint: a folder, a file, or a Hugging Face repository."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vllm_medusa.checkpoint.naming import is_heads_tensor
from vllm_medusa.errors import CheckpointError
from vllm_medusa.json_file import read_json
from vllm_medusa.reading import local_path
from vllm_medusa.wording import show

# In order of preference; heads of their own before a model that contains them.
WEIGHT_FILES = (
    "medusa_lm_head.safetensors",
    "medusa_lm_head.pt",
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# The index of a mixture of experts lists a hundred thousand tensors.
_MAX_JSON_BYTES = 32 << 20
_MAX_SHARDS = 4096
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_MAX_HUB_ID = 96
# What git allows, less what a path could take for a way up.
_REVISION = re.compile(r"(?!.*\.\.)[^\W_][^\x00-\x20\x7f\\~^:?*\[]{0,254}", re.ASCII)


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
    text = os.fspath(name)
    if name == "default":
        from vllm_medusa.default_model import heads_path

        return Path(heads_path())
    path = local_path(text)
    if text and _is_local(path):
        if revision is not None:
            raise CheckpointError(
                f"revision {show(revision)} is for Hugging Face ids, but {path} is "
                "local"
            )
        return path
    is_id = len(text) <= _MAX_HUB_ID and _HUB_ID.fullmatch(text) is not None
    if path.suffix in _SUFFIXES or not is_id:
        raise CheckpointError(
            f"heads {show(text, 200)} do not exist: give a folder, a tensor file, a "
            "Hugging Face id (organisation/name) or 'default'"
        )
    if revision is not None and not _REVISION.fullmatch(revision):
        raise CheckpointError(
            f"{show(revision)} is no revision: give a branch, a tag or a commit"
        )
    from vllm_medusa.checkpoint.hub import fetch_heads

    return fetch_heads(text, revision)


def _is_local(path: Path) -> bool:
    """Whether there is something at `path`, be it a link that leads nowhere.

    Raises:
        CheckpointError: that cannot be told; it is never looked up elsewhere.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise CheckpointError(f"heads {path} cannot be read: {error}") from None
    return True


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
    try:
        if not path.is_dir():
            if path.name.endswith(".index.json"):
                return [path.parent / shard for shard in heads_shards(path)]
            return [path]
        chosen = choose_weights([entry.name for entry in path.iterdir()])
    except OSError as error:
        raise CheckpointError(f"heads {path} cannot be read: {error}") from None
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
    if not 1 <= len(shards) <= _MAX_SHARDS:
        raise CheckpointError(
            f"{index} names {len(shards)} files: 1 to {_MAX_SHARDS} are expected"
        )
    for shard in shards:
        if not shard or os.path.basename(shard) != shard or shard in (".", ".."):  # noqa: PTH119
            raise CheckpointError(f"{index} points outside its folder: {show(shard)}")
        if not shard.endswith(_SUFFIXES) or not shard.isprintable():
            raise CheckpointError(
                f"{index} names {show(shard)}, which is no tensor file"
            )
    return sorted(shards)


def read_object(
    path: Path, what: str, max_bytes: int = _MAX_JSON_BYTES
) -> dict[str, Any]:
    """Read a JSON object; `what` it holds goes into the error message.

    Raises:
        CheckpointError: unreadable, larger than `max_bytes`, or no object.
    """
    content = read_json(path, what, CheckpointError, max_bytes)
    if not isinstance(content, dict):
        raise CheckpointError(f"{what} file {path} holds no JSON object")
    return content
