# SPDX-License-Identifier: Apache-2.0
"""A tiny model that two ranks can share, and what one rank answers with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import TinyModel, make_tiny_model


@pytest.fixture(scope="session")
def splittable(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Eight heads and four KV heads, for two ranks or four."""
    folder = tmp_path_factory.mktemp("splittable")
    return make_tiny_model(
        "llama", folder, num_attention_heads=8, num_key_value_heads=4
    )


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sessions. Sockets lie there, whose paths may have 107
    characters: pytest's own folders are too deep."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
