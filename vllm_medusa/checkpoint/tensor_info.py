# SPDX-License-Identifier: Apache-2.0
"""What a file's header says of a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor; dtype None for one we don't know."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
