# SPDX-License-Identifier: Apache-2.0
"""Loading a heads checkpoint of any known format under canonical names."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vllm_medusa.checkpoint.checks import check_contents, check_dtype
from vllm_medusa.checkpoint.fp8 import check_scale, dequantise, full_dtype
from vllm_medusa.checkpoint.infer import (
    check_shapes,
    config_notes,
    infer_spec,
    is_unreduced_projection,
)
from vllm_medusa.checkpoint.locate import read_object, resolve_heads, weight_files
from vllm_medusa.checkpoint.naming import Naming, map_names
from vllm_medusa.checkpoint.tensor_files import TensorFile, open_tensor_file
from vllm_medusa.checkpoint.tensor_info import TensorInfo
from vllm_medusa.checkpoint.torch_file import TorchFile
from vllm_medusa.errors import CheckpointError, ConfigError
from vllm_medusa.heads.spec import HeadsSpec

logger = logging.getLogger(__name__)

_MAX_CONFIG_BYTES = 4 << 20
# Layers and heads may share a weight of the file, but have their own in memory.
_MAX_GROWTH = 16
_SMALL = 1 << 20


@dataclass(frozen=True)
class HeadsCheckpoint:
    """Heads read into memory.

    Attributes:
        spec: what the tensors are; the config is only a hint.
        tensors: canonical name -> tensor on the CPU, in its stored dtype (FP8: in that
            of the other weights); exactly the names of `spec.tensor_shapes()`.
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
        """Where the files beside the heads lie (accuracies, tree, calibration)."""
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
    opened = _open(path)
    for note in opened.notes:
        logger.info("%s: %s", where, note)
    spec = _reduced(opened.spec, num_heads, draft_vocab, where)
    stored_tensors = {name: opened.read(name) for name in spec.tensor_shapes()}
    check_contents(stored_tensors, spec, where=where)
    return HeadsCheckpoint(
        spec=spec,
        tensors=_reduce(stored_tensors, opened.spec, spec),
        path=path,
        format=opened.naming.format,
        base_model=_base_model(opened.config),
        config=opened.config,
        notes=opened.notes,
    )


def read_heads_spec(
    path: Path, *, num_heads: int | None = None, draft_vocab: int | None = None
) -> HeadsSpec:
    """What the heads at `path` are, from the files' headers: no weight is read.

    Args:
        path: a local folder or file, see `resolve_heads`.
        num_heads: as `load_heads` takes it.
        draft_vocab: as `load_heads` takes it.

    Raises:
        CheckpointError: missing, damaged, incomplete or unknown; says what.
        ConfigError: `num_heads` or `draft_vocab` is more than there is.
    """
    return _reduced(_open(path).spec, num_heads, draft_vocab, str(path))


@dataclass(frozen=True)
class _Opened:
    """A checkpoint of which only names, shapes and dtypes are known."""

    spec: HeadsSpec
    # stored name -> file
    sources: dict[str, TensorFile]
    naming: Naming
    config: dict[str, Any]
    notes: tuple[str, ...]
    where: str

    def read(self, name: str) -> torch.Tensor:
        """Read the tensor of a canonical name, on the CPU."""
        tensor = self._stored(self.naming.stored[name])
        if name not in self.naming.scales:
            return tensor
        scale = self._stored(self.naming.scales[name])
        dtype = full_dtype(self.config)
        return dequantise(name, tensor, scale, dtype, where=self.where)

    def _stored(self, name: str) -> torch.Tensor:
        return self.sources[name].read(name)


def _open(path: Path) -> _Opened:
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
    for name, scale in naming.scales.items():
        if name in infos:
            check_scale(name, infos[name], sources[scale].infos[scale], where=where)
            infos[name] = TensorInfo(infos[name].shape, full_dtype(config))
    for name, info in infos.items():
        check_dtype(name, info.dtype, where=where)
    spec = infer_spec(infos, config, where=where)
    check_shapes(infos, spec, where=where)
    _check_growth(infos, spec, files, where)
    notes = tuple(config_notes(spec, config))
    return _Opened(spec, sources, naming, config, notes, where)


def _reduced(
    found: HeadsSpec, num_heads: int | None, draft_vocab: int | None, where: str
) -> HeadsSpec:
    try:
        return found.reduced(num_heads=num_heads, draft_vocab=draft_vocab)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not os.path.lexists(file):
        return {}
    return read_object(file, "config", _MAX_CONFIG_BYTES)


def _check_growth(
    infos: Mapping[str, TensorInfo],
    spec: HeadsSpec,
    files: list[TensorFile],
    where: str,
) -> None:
    """Refuse a few weights under thousands of names.

    Raises:
        CheckpointError: in memory the heads would be far larger than the files.
    """
    claimed = 0
    for name in spec.tensor_shapes():
        dtype = infos[name].dtype
        assert dtype is not None
        claimed += math.prod(infos[name].shape) * dtype.itemsize
    held = sum(file.path.stat().st_size for file in files)
    if claimed > _MAX_GROWTH * held + _SMALL:
        raise CheckpointError(
            f"{where}: the heads claim {claimed} bytes of weights, but the files hold "
            f"{held}: too many tensors share the same weights"
        )


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
    if not isinstance(name, str) or name in ("", "N/A"):
        return None
    # It is printed and written down: nothing that a terminal takes for commands.
    return name if len(name) <= 256 and name.isprintable() else None
