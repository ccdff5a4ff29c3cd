# SPDX-License-Identifier: Apache-2.0
"""Giving a function of vLLM another name to look up, for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def replaced(owner: ModuleType | type[Any], name: str, value: Any) -> Iterator[None]:
    """Let `owner.name` be `value` inside the block.

    For constructors of vLLM that name a class or function themselves, so that no
    subclass can choose another.
    """
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
