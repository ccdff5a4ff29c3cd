# SPDX-License-Identifier: Apache-2.0
"""The architecture of heads, read off their tensors' names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vllm_medusa.checkpoint.tensor_info import TensorInfo
from vllm_medusa.errors import CheckpointError, ConfigError
from vllm_medusa.heads.spec import BlockKind, HeadsSpec, ProjectionKind
from vllm_medusa.wording import show

# Where published configs say what the tensors show; vLLM's names last.
_HEADS_KEYS = ("medusa_num_heads", "num_medusa_heads", "num_heads")
_LAYERS_KEYS = ("medusa_num_layers", "num_medusa_layers")

_FIRST_LAYER = "blocks.0.layers.0.weight"


def infer_spec(
    infos: Mapping[str, TensorInfo], config: Mapping[str, Any], *, where: str
) -> HeadsSpec:
    """Infer the spec from canonical names and shapes, and check that all fit.

    `config` only gives a vocabulary size where no tensor tells it.

    Raises:
        CheckpointError: missing heads or layers, or inconsistent shapes.
    """
    layers = _layers_by_head(infos, where)
    block = _block_kind(infos)
    first = "blocks.0.layers.0.up.weight" if block == "mlp" else _FIRST_LAYER
    if first not in infos:
        raise CheckpointError(f"{where}: tensor {first!r} is missing")
    rows, hidden_size = _matrix(infos, first, where)
    projection, projected, rank = _projection(infos, where)
    draft_vocab = None
    if "token_map" in infos:
        if len(infos["token_map"].shape) != 1:
            raise CheckpointError(
                f"{where}: token_map has shape {list(infos['token_map'].shape)}, one "
                "dimension is expected"
            )
        draft_vocab = infos["token_map"].shape[0]
    try:
        return HeadsSpec(
            num_heads=len(layers),
            hidden_size=hidden_size,
            num_layers=layers[0],
            vocab_size=_vocab_size(projected, draft_vocab, config),
            block=block,
            intermediate_size=rows if block == "mlp" else None,
            block_bias=any(
                re.search(r"\.layers\..*bias$", name) is not None for name in infos
            ),
            projection=projection,
            rank=rank,
            draft_vocab_size=draft_vocab,
        )
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error


def check_shapes(
    infos: Mapping[str, TensorInfo], spec: HeadsSpec, *, where: str
) -> None:
    """Check that the tensors are exactly those of `spec`.

    A projection over all V tokens beside a token_map is allowed: vLLM selects its
    rows on loading, and so do we.

    Raises:
        CheckpointError: names the tensors that are missing, extra or misshapen.
    """
    expected = spec.tensor_shapes()
    missing = sorted(set(expected) - set(infos))
    if missing:
        raise CheckpointError(f"{where}: tensors are missing: {', '.join(missing[:8])}")
    extra = sorted(set(infos) - set(expected))
    if extra:
        raise CheckpointError(
            f"{where}: tensors do not fit heads of block {spec.block!r} and "
            f"projection {spec.projection!r}: {', '.join(extra[:8])}"
        )
    for name, shape in expected.items():
        actual = infos[name].shape
        if actual == shape:
            continue
        if is_unreduced_projection(name, actual, spec) and actual[1:] == shape[1:]:
            continue
        raise CheckpointError(
            f"{where}: tensor {name!r} has shape {list(actual)}, expected {list(shape)}"
        )


def is_unreduced_projection(name: str, shape: tuple[int, ...], spec: HeadsSpec) -> bool:
    """Whether `name` projects to all V tokens although there is a token_map."""
    return (
        spec.draft_vocab_size is not None
        and name.startswith("lm_head")
        and not name.endswith(".down.weight")
        and shape[:1] == (spec.vocab_size,)
    )


def config_notes(spec: HeadsSpec, config: Mapping[str, Any]) -> list[str]:
    """Where the config contradicts the tensors; the tensors count."""
    # ModelOpt has an object of its own in the base model's config.
    own = config.get("medusa")
    config = {**config, **own} if isinstance(own, dict) else config
    layer_keys: tuple[str, ...] = _LAYERS_KEYS
    if config.get("model_type") == "medusa":
        layer_keys = (*_LAYERS_KEYS, "num_hidden_layers")
    notes = []
    for what, keys, actual in (
        ("heads", _HEADS_KEYS, spec.num_heads),
        ("layers per head", layer_keys, spec.num_layers),
        ("hidden size", ("hidden_size",), spec.hidden_size),
        ("vocabulary", ("vocab_size",), spec.vocab_size),
        ("draft vocabulary", ("truncated_vocab_size",), spec.projected_vocab_size),
    ):
        for key in keys:
            stated = config.get(key)
            if stated is not None and actual is not None and stated != actual:
                notes.append(
                    f"config says {what} = {show(stated)} ({key}), the tensors "
                    f"hold {actual}"
                )
    bias = config.get("medusa_fc_bias")
    if bias is not None and bool(bias) != spec.block_bias:
        has = "have" if spec.block_bias else "lack"
        notes.append(
            f"config says medusa_fc_bias = {show(bias)}, the tensors {has} biases"
        )
    return notes


def _layers_by_head(infos: Mapping[str, TensorInfo], where: str) -> list[int]:
    found: dict[int, set[int]] = {}
    for name in infos:
        if match := re.match(r"blocks\.(\d+)\.layers\.(\d+)\.", name):
            found.setdefault(int(match[1]), set()).add(int(match[2]))
        elif match := re.match(r"lm_heads\.(\d+)\.", name):
            found.setdefault(int(match[1]), set())
    if not found:
        raise CheckpointError(f"{where} holds no layer of Medusa heads")
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing:
        raise CheckpointError(
            f"{where}: heads {missing[:8]} are missing, though head {max(found)} is "
            "there"
        )
    depth = max(max(layers, default=-1) for layers in found.values()) + 1
    for head in sorted(found):
        absent = sorted(set(range(depth)) - found[head])
        if absent:
            raise CheckpointError(f"{where}: head {head} lacks layers {absent[:8]}")
    return [depth] * len(found)


def _block_kind(infos: Mapping[str, TensorInfo]) -> BlockKind:
    if any(re.search(r"\.layers\.\d+\.(up|down)\.", name) for name in infos):
        return "mlp"
    if any(".norms." in name for name in infos):
        return "layernorm"
    return "residual"


def _projection(
    infos: Mapping[str, TensorInfo], where: str
) -> tuple[ProjectionKind, int | None, int | None]:
    """Kind, projected vocabulary, rank."""
    if "lm_heads.0.down.weight" in infos and "lm_heads.0.up.weight" in infos:
        rank = _matrix(infos, "lm_heads.0.down.weight", where)[0]
        return "low_rank", _matrix(infos, "lm_heads.0.up.weight", where)[0], rank
    if "lm_heads.0.weight" in infos:
        return "own", _matrix(infos, "lm_heads.0.weight", where)[0], None
    if any(name.startswith("lm_heads.") for name in infos):
        raise CheckpointError(f"{where}: the projection of head 0 is missing")
    if "lm_head.weight" in infos:
        return "single", _matrix(infos, "lm_head.weight", where)[0], None
    return "shared", None, None


def _matrix(infos: Mapping[str, TensorInfo], name: str, where: str) -> tuple[int, int]:
    shape = infos[name].shape
    if len(shape) != 2:
        raise CheckpointError(
            f"{where}: tensor {name!r} has shape {list(shape)}, a matrix is expected"
        )
    return shape[0], shape[1]


def _vocab_size(
    projected: int | None, draft_vocab: int | None, config: Mapping[str, Any]
) -> int | None:
    if projected is not None and projected != draft_vocab:
        return projected
    stated = config.get("vocab_size")
    # A token id is an int32.
    if type(stated) is not int or not max(1, draft_vocab or 0) <= stated < 2**31:
        return None
    return stated
