# SPDX-License-Identifier: Apache-2.0
"""Writing heads as FasterDecoding/Medusa, the reference implementation, reads them.

Its `MedusaModel` (`medusa/model/medusa_model.py`) holds, for each head h, a Sequential
of L ResBlocks and one Linear without bias, and loads the state dict of that list:
`{h}.{l}.linear.weight`, `{h}.{l}.linear.bias`, `{h}.{L}.weight`. What it keeps in
`config.json` are the base model and the numbers of heads and layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from vllm_medusa.checkpoint.save import unshared
from vllm_medusa.errors import ConfigError, UnsupportedError
from vllm_medusa.files import atomic_path
from vllm_medusa.heads.spec import HeadsSpec

REFERENCE_FILES = {
    "v0.1": "medusa_lm_head.pt",
    "v1": "medusa_lm_head.safetensors",
}
"""Release of the reference -> the file of tensors that it writes and reads."""


def save_reference(
    folder: Path,
    spec: HeadsSpec,
    tensors: Mapping[str, torch.Tensor],
    *,
    release: str,
    base_model: str | None,
) -> None:
    """Write the tensors and config.json of a release.

    Args:
        folder: made if need be.
        spec: describes `tensors`.
        tensors: under canonical names, as `spec.tensor_shapes()` lists them.
        release: a key of `REFERENCE_FILES`.
        base_model: folder or Hugging Face id, from which the reference loads it.

    Raises:
        ConfigError: `base_model` is not known.
        UnsupportedError: the reference has no such heads; says why.
        OutputError: there is no room, or no permission to write.
    """
    named = reference_tensors(spec, tensors, release=release)
    if base_model is None:
        raise ConfigError(
            "the reference loads the base model that config.json names, and these "
            "heads name none: give --base-model"
        )
    config = {
        "base_model_name_or_path": base_model,
        "medusa_num_heads": spec.num_heads,
        "medusa_num_layers": spec.num_layers,
    }
    path = folder / REFERENCE_FILES[release]
    with atomic_path(path) as temporary:
        mode = temporary.stat().st_mode
        if path.suffix == ".pt":
            torch.save(unshared(named), temporary)
        else:
            save_file(unshared(named), temporary, metadata={"format": "pt"})
        temporary.chmod(mode)  # save_file puts a private file in its place
    with atomic_path(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def reference_tensors(
    spec: HeadsSpec, tensors: Mapping[str, torch.Tensor], *, release: str
) -> dict[str, torch.Tensor]:
    """Canonical tensors under the reference's names.

    A bias that the heads lack is 0 there; one projection of all heads is repeated; the
    rows of a token_map that holds every token go back into the tokens' own order.

    Raises:
        UnsupportedError: the reference has no such heads; says why.
    """
    _refuse(spec, tensors, release)
    order = None
    if spec.draft_vocab_size is not None:
        order = tensors["token_map"].argsort()  # all tokens, each once
    named = {}
    for head in range(spec.num_heads):
        for layer in range(spec.num_layers):
            own = f"blocks.{head}.layers.{layer}"
            weight = tensors[f"{own}.weight"]
            named[f"{head}.{layer}.linear.weight"] = weight
            bias = tensors.get(f"{own}.bias")
            named[f"{head}.{layer}.linear.bias"] = (
                weight.new_zeros(spec.hidden_size) if bias is None else bias
            )
        single = spec.projection == "single"
        projection = "lm_head.weight" if single else f"lm_heads.{head}.weight"
        rows = tensors[projection]
        named[f"{head}.{spec.num_layers}.weight"] = (
            rows if order is None else rows[order]
        )
    return named


def _refuse(spec: HeadsSpec, tensors: Mapping[str, torch.Tensor], release: str) -> None:
    start = f"heads cannot be written in the reference's form {release}: "
    if spec.block != "residual":
        raise UnsupportedError(
            f"{start}their blocks are {spec.block!r}, its are residual (x + SiLU(Wx + "
            "b)); train others with --block residual"
        )
    if spec.draft_vocab_size not in (None, spec.vocab_size):
        raise UnsupportedError(
            f"{start}they guess among {spec.draft_vocab_size} tokens of a token_map, "
            "its over the whole vocabulary; train others with --draft-vocab of the "
            "vocabulary's size"
        )
    if spec.projection not in ("own", "single"):
        what = {
            "shared": "they share the base model's LM head",
            "low_rank": f"their projections are of rank {spec.rank}",
        }[spec.projection]
        raise UnsupportedError(
            f"{start}{what}, its heads have a whole matrix each; train others with "
            "--projection own"
        )
    for head in range(spec.num_heads):
        for layer in range(1, spec.num_layers):
            for part in ("weight", "bias") if spec.block_bias else ("weight",):
                first, other = (
                    tensors[f"blocks.{head}.layers.{index}.{part}"]
                    for index in (0, layer)
                )
                if not torch.equal(first, other):
                    raise UnsupportedError(
                        f"{start}it repeats one block, so that all layers of a head "
                        f"have the same weights, but layers 0 and {layer} of head "
                        f"{head} differ; train others with --num-layers 1"
                    )
