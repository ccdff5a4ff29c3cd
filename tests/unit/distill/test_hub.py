# SPDX-License-Identifier: Apache-2.0
"""Data sets on this machine, through the library `datasets`."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_medusa.distill.hub import hub_conversations
from vllm_medusa.distill.source_option import SourceOption
from vllm_medusa.errors import ConfigError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def read(location: Path, **values: str) -> list[tuple[str, ...]]:
    option = SourceOption("hf", str(location), **values)  # type: ignore[arg-type]
    return [c.user_turns for c in hub_conversations(option, "label", "task")]


def test_parquet_with_a_column_that_is_found_by_its_name(tmp_path: Path) -> None:
    rows = {"prompt": ["one", None, "two"], "label": [1, 2, 3]}
    path = tmp_path / "set.parquet"
    datasets.Dataset.from_dict(rows).to_parquet(path)
    assert read(path) == [("one",), ("two",)]


def test_columns_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    rows = {"instruction": ["Translate.", "Say hi."], "input": ["Haus", ""]}
    datasets.Dataset.from_dict(rows).to_json(path)
    expected = [("Translate.\n\nHaus",), ("Say hi.",)]
    assert read(path, column="instruction+input") == expected


def test_saved_to_disk_with_splits_and_conversations(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    saved = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"messages": [chat]}),
        test=datasets.Dataset.from_dict({"turns": [["x", "y"]]}),
    )
    saved.save_to_disk(tmp_path / "saved")
    option = SourceOption("hf", str(tmp_path / "saved"))
    (found,) = hub_conversations(option, "label", "task")
    assert (found.user_turns, found.system) == (("a", "c"), "Be brief.")
    assert not found.is_open
    assert read(tmp_path / "saved", split="test") == [("x", "y")]
    with pytest.raises(ConfigError, match="no split 'dev': choose one of train, test"):
        read(tmp_path / "saved", split="dev")


def test_what_can_not_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    datasets.Dataset.from_dict({"body": ["text"], "n": [1]}).to_parquet(path)
    with pytest.raises(ConfigError, match="none of the usual columns: name one of"):
        read(path)
    with pytest.raises(ConfigError, match="no column 'title': name one of body, n"):
        read(path, column="title")
    with pytest.raises(ConfigError, match="row 0 holds 1: name columns of texts"):
        read(path, column="n")
    assert read(path, column="body") == [("text",)]
    (tmp_path / "set.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"ends in none of \.parquet"):
        read(tmp_path / "set.txt")
    path.write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match="can't load the data set"):
        read(path)
    with pytest.raises(ConfigError, match="can't load the data set"):
        read(tmp_path / "missing")


def test_what_would_not_be_looked_at_is_refused(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"prompt": ["one"]})
    path = tmp_path / "set.parquet"
    data.to_parquet(path)
    for name in ("split", "config", "revision"):
        with pytest.raises(ConfigError, match=f"^{name} in --source hf:.*one file"):
            read(path, **{name: "other"})
    data.save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigError, match="saved without splits"):
        read(tmp_path / "saved", split="test")
    with pytest.raises(ConfigError, match=r"config in .* a saved set has none"):
        read(tmp_path / "saved", config="other")
    with pytest.raises(ConfigError, match=r"revision in .* a folder has none"):
        read(tmp_path, revision="main")
