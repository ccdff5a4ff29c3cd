# SPDX-License-Identifier: Apache-2.0
"""Ranks of other code than the engine's are refused."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import VllmConfig

import vllm_medusa
from vllm_medusa.distributed import worker_start
from vllm_medusa.distributed.installation import (
    installation,
    note_installation,
    noted_installation,
    require_same,
)
from vllm_medusa.distributed.worker_start import require_same_code
from vllm_medusa.engine_config import OPTIONS_KEY
from vllm_medusa.errors import CheckpointError, ConfigError, UnsupportedError

PACKAGE = Path(str(vllm_medusa.__file__)).parent
PRINT = (
    "from vllm_medusa.distributed.installation import installation;"
    "print(installation()['source'])"
)


def source_of(parent: Path) -> str:
    """The source of the package in a folder, as a new process sees it."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT],
        env={**os.environ, "PYTHONPATH": str(parent)},
        cwd=parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_source_is_that_of_the_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / "vllm_medusa"
    shutil.copytree(
        PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    first = source_of(tmp_path)
    assert source_of(tmp_path) == first
    with (folder / "kv.py").open("a") as file:
        file.write("# another version\n")
    assert source_of(tmp_path) != first


@pytest.mark.parametrize("changed", ["version", "source"])
def test_a_difference_is_named(changed: str) -> None:
    mine = {"version": "1.0", "source": "a" * 64, "host": "first"}
    there = mine | {"host": "second"}
    require_same(mine, there, "the node")
    with pytest.raises(UnsupportedError, match=r"the node has .*bbb.* started with"):
        require_same(mine, there | {changed: "b" * 64}, "the node")


def test_files_of_one_host_may_change_meanwhile() -> None:
    mine = {"version": "1.0", "source": "a" * 64, "host": "first"}
    require_same(mine, mine | {"source": "b" * 64}, "the worker")
    with pytest.raises(UnsupportedError, match=r"the worker has vllm-medusa 2\.0"):
        require_same(mine, mine | {"version": "2.0"}, "the worker")


def config_of_engine(heads: Path | None) -> Any:
    options = {OPTIONS_KEY: {"config": {"heads": str(heads)}}}
    vllm_config: Any = SimpleNamespace(additional_config=options if heads else {})
    note_installation(vllm_config)
    return vllm_config


def test_a_worker_of_the_same_code_starts(tmp_path: Path) -> None:
    require_same_code(config_of_engine(tmp_path))


def test_a_worker_of_other_code_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of_engine(tmp_path)
    other = {"version": "0.0.1", "source": "0" * 64, "host": "elsewhere"}
    monkeypatch.setattr(worker_start, "installation", lambda: other)
    with pytest.raises(UnsupportedError, match=f"process {os.getpid()} on .*0\\.0\\.1"):
        require_same_code(config)


def test_a_worker_without_the_heads(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{os.getpid()} on .* has no .*/heads: "):
        require_same_code(config_of_engine(tmp_path / "heads"))


def test_a_worker_of_an_engine_without_medusa() -> None:
    with pytest.raises(ConfigError, match="not started with Medusa"):
        require_same_code(config_of_engine(None))


def test_compiled_models_are_found_again_on_another_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM names its cache of compiled models by the configuration's hash."""
    config = VllmConfig()
    plain = config.compute_hash()
    note_installation(config)
    assert config.compute_hash() == plain
    sent = pickle.loads(pickle.dumps(config))  # noqa: S301
    assert noted_installation(sent) == installation()
