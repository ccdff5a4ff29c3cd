# SPDX-License-Identifier: Apache-2.0
"""Reading every published form of Medusa heads, writing the canonical one."""

from __future__ import annotations

from vllm_medusa.checkpoint.load import HeadsCheckpoint, load_heads
from vllm_medusa.checkpoint.locate import resolve_heads
from vllm_medusa.checkpoint.save import save_heads

__all__ = ["HeadsCheckpoint", "load_heads", "resolve_heads", "save_heads"]
