# SPDX-License-Identifier: Apache-2.0
"""Medusa heads: their description, a readable reference, the fast module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_medusa.heads.medusa_heads import MedusaHeads
    from vllm_medusa.heads.reference import ReferenceHeads
    from vllm_medusa.heads.spec import HeadsSpec

__all__ = ["HeadsSpec", "MedusaHeads", "ReferenceHeads"]

_EXPORTS = {
    "HeadsSpec": "vllm_medusa.heads.spec",
    "MedusaHeads": "vllm_medusa.heads.medusa_heads",
    "ReferenceHeads": "vllm_medusa.heads.reference",
}


def __getattr__(name: str) -> Any:
    """Import on first use: inspecting a checkpoint needs no vLLM."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
