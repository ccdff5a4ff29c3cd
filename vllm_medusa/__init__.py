# SPDX-License-Identifier: Apache-2.0
"""Medusa speculative decoding as a plugin for stock vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_medusa.config import MedusaConfig
    from vllm_medusa.tree import TokenTree

__version__ = "0.1.0"
__all__ = ["MedusaConfig", "TokenTree", "__version__"]

_EXPORTS = {"MedusaConfig": "vllm_medusa.config", "TokenTree": "vllm_medusa.tree"}


def __getattr__(name: str) -> Any:
    """Import an exported name on first use: importing the plugin must stay fast."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
