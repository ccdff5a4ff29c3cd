# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from tests.unit.train.medusa2 import tiny


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_model(tmp_path_factory.mktemp("tied"), tied=True, steps=2)


@pytest.fixture(scope="session")
def answers(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    return tiny.write_answers(file, tiny.written(base, 300))
