# SPDX-License-Identifier: Apache-2.0
"""Loading a heads checkpoint of any known format under canonical names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vllm_medusa.checkpoint.checks import check_contents, check_dtype
from vllm_medusa.checkpoint.infer import (
    check_shapes,
    config_notes,
    infer_spec,
    is_unreduced_projection,
)
from vllm_medusa.checkpoint.locate import read_object, resolve_heads, weight_files
from vllm_medusa.checkpoint.naming import map_names
from vllm_medusa.checkpoint.tensor_files import (
    TensorFile,
    TorchFile,
    open_tensor_file,
)
from vllm_medusa.errors import CheckpointError, ConfigError
from vllm_medusa.heads.spec import HeadsSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadsCheckpoint:
    """Heads read into memory.

    Attributes:
        spec: what the tensors are; the config is only a hint.
        tensors: canonical name -> tensor on the CPU, in its stored dtype; exactly
            the names of `spec.tensor_shapes()`.
        path: the folder or file they were read from.
        format: a key of `vllm_medusa.checkpoint.naming.FORMATS`.
        base_model: the base model the config names, if it does.
        config: the checkpoint's config.json, or empty.
        notes: where the config contradicts the tensors.
    """

    spec: HeadsSpec
    tensors: dict[str, torch.Tensor]
    path: Path
    format: str
    base_model: str | None
    config: dict[str, Any]
    notes: tuple[str, ...] = field(default=())

    @property
    def folder(self) -> Path:
        """Where the files beside the heads lie (accuracies, tree, batch table)."""
        return self.path if self.path.is_dir() else self.path.parent


def load_heads(
    name_or_path: str | Path,
    revision: str | None = None,
    *,
    num_heads: int | None = None,
    draft_vocab: int | None = None,
) -> HeadsCheckpoint:
    """Read heads of any known format.

    Args:
        name_or_path: see `resolve_heads`.
        revision: of a Hugging Face repository.
        num_heads: keep only the first `num_heads` heads.
        draft_vocab: keep only the first `draft_vocab` entries of the token_map,
            and those rows of stored projections.

    Raises:
        CheckpointError: missing, damaged, incomplete or unknown; says what.
        ConfigError: `num_heads` or `draft_vocab` is more than there is.
    """
    path = resolve_heads(name_or_path, revision)
    where = str(path)
    config = _read_config(path)
    files = [open_tensor_file(file) for file in weight_files(path)]
    sources = _sources(files)
    naming = map_names(
        sources, config, is_torch_file=isinstance(files[0], TorchFile), where=where
    )
    infos = {
        canonical: sources[stored].infos[stored]
        for canonical, stored in naming.stored.items()
    }
    for name, info in infos.items():
        check_dtype(name, info.dtype, where=where)
    found = infer_spec(infos, config, where=where)
    check_shapes(infos, found, where=where)
    notes = tuple(config_notes(found, config))
    for note in notes:
        logger.info("%s: %s", where, note)
    try:
        spec = found.reduced(num_heads=num_heads, draft_vocab=draft_vocab)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    stored_tensors = {
        name: sources[naming.stored[name]].read(naming.stored[name])
        for name in spec.tensor_shapes()
    }
    check_contents(stored_tensors, spec, where=where)
    return HeadsCheckpoint(
        spec=spec,
        tensors=_reduce(stored_tensors, found, spec),
        path=path,
        format=naming.format,
        base_model=_base_model(config),
        config=config,
        notes=notes,
    )


def _read_config(path: Path) -> dict[str, Any]:
    file = (path if path.is_dir() else path.parent) / "config.json"
    return read_object(file, "config") if file.is_file() else {}


def _sources(files: list[TensorFile]) -> dict[str, TensorFile]:
    sources: dict[str, TensorFile] = {}
    for file in files:
        for name in file.infos:
            if name in sources:
                raise CheckpointError(
                    f"tensor {name!r} is in {sources[name].path} and in {file.path}"
                )
            sources[name] = file
    return sources


def _reduce(
    tensors: Mapping[str, torch.Tensor], found: HeadsSpec, spec: HeadsSpec
) -> dict[str, torch.Tensor]:
    """Cut token_map and projections to the draft vocabulary of `spec`."""
    if spec.draft_vocab_size is None:
        return dict(tensors)
    token_map = tensors["token_map"].to(torch.int64)[: spec.draft_vocab_size]
    reduced = {}
    for name, tensor in tensors.items():
        if name == "token_map":
            tensor = token_map
        elif is_unreduced_projection(name, tuple(tensor.shape), found):
            tensor = tensor[token_map]
        elif name.startswith("lm_head") and not name.endswith(".down.weight"):
            tensor = tensor[: spec.draft_vocab_size]
        reduced[name] = tensor
    return reduced


def _base_model(config: Mapping[str, Any]) -> str | None:
    name = config.get("base_model_name_or_path") or config.get("_name_or_path")
    return name if isinstance(name, str) and name not in ("", "N/A") else None
