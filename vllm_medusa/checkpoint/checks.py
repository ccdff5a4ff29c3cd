# SPDX-License-Identifier: Apache-2.0
"""Checks of the tensors' contents: dtypes, finite numbers, the token_map."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vllm_medusa.errors import CheckpointError
from vllm_medusa.heads.spec import HeadsSpec

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16)


def check_dtype(name: str, dtype: torch.dtype | None, *, where: str) -> None:
    """Check that weights are floating point and the token_map integer.

    Raises:
        CheckpointError: another dtype, such as quantised heads have.
    """
    allowed = _INTEGERS if name == "token_map" else _FLOATS
    if dtype not in allowed:
        stated = "an unsupported dtype" if dtype is None else f"dtype {dtype}"
        names = ", ".join(str(kind).removeprefix("torch.") for kind in allowed)
        raise CheckpointError(
            f"{where}: tensor {name!r} has {stated}; {names} are supported, and "
            "float8_e4m3fn beside a weight_scale, as ModelOpt exports it"
        )


def check_contents(
    tensors: Mapping[str, torch.Tensor], spec: HeadsSpec, *, where: str
) -> None:
    """Check dtypes, that weights are finite, and that token_map maps.

    Raises:
        CheckpointError: names the tensor and what is wrong with it.
    """
    for name, tensor in tensors.items():
        check_dtype(name, tensor.dtype, where=where)
        if name == "token_map":
            _check_token_map(tensor, spec.vocab_size, where)
        elif not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{where}: tensor {name!r} holds {bad} values that are NaN or "
                "infinite; fetch or train the heads again"
            )


# token_map: [draft_vocab]
def _check_token_map(
    token_map: torch.Tensor, vocab_size: int | None, where: str
) -> None:
    lowest, highest = int(token_map.min()), int(token_map.max())
    if lowest < 0 or (vocab_size is not None and highest >= vocab_size):
        limit = "" if vocab_size is None else f" to {vocab_size - 1}"
        raise CheckpointError(
            f"{where}: token_map holds ids {lowest} to {highest}; token ids are "
            f"0{limit}"
        )
    ids, counts = token_map.unique(return_counts=True)
    if ids.numel() != token_map.numel():
        raise CheckpointError(
            f"{where}: token_map holds token {int(ids[counts > 1][0])} more than once"
        )
