# SPDX-License-Identifier: Apache-2.0
"""What all tests of grammar masks need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.v1 import structured_output as upstream

from tests.engine.support.models import build_tokenizer
from vllm_medusa import plugin


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    plugin.register()


@pytest.fixture(autouse=True)
def no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM logs an error for a draft that the grammar refuses."""

    def error(message: str, *args: object) -> None:
        raise AssertionError(message % args)

    monkeypatch.setattr(upstream.logger, "error", error)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)
