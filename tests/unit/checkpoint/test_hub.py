# SPDX-License-Identifier: Apache-2.0
"""Heads from Hugging Face, played by a local folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.unit.checkpoint.support import (
    REFERENCE_CONFIG,
    assert_same,
    backbone,
    canonical_tensors,
    reference_names,
    write,
    write_sharded,
)
from vllm_medusa.checkpoint import hub, load_heads, resolve_heads
from vllm_medusa.errors import CheckpointError

SHA = "0123abc"


class Hub:
    """A repository in `folder`; `fetched` lists (file, revision) as asked for."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.fetched: list[tuple[str, str]] = []
        self.revisions: list[str | None] = []
        self.error: Exception | None = None
        self.cached = False

    def model_info(self, repository: str, revision: str | None = None):
        self.revisions.append(revision)
        if self.error is not None:
            raise self.error
        files = [SimpleNamespace(rfilename=f.name) for f in self.folder.iterdir()]
        return SimpleNamespace(sha=SHA, siblings=files)

    def download(self, repository: str, name: str, revision: str) -> str:
        self.fetched.append((name, revision))
        self.cache.mkdir(exist_ok=True)
        shutil.copyfile(self.folder / name, self.cache / name)
        return str(self.cache / name)

    def snapshot(self, repository: str, revision, local_files_only: bool) -> str:
        assert local_files_only
        if not self.cached:
            raise LocalEntryNotFoundError("not cached")
        return str(self.folder)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch) -> Hub:
    fake = Hub(tmp_path / "hub", tmp_path / "cache")
    fake.folder.mkdir()
    monkeypatch.setattr(hub, "HfApi", lambda: fake)
    monkeypatch.setattr(hub, "hf_hub_download", fake.download)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot)
    return fake


def test_only_what_is_needed_is_fetched_at_one_commit(fake_hub):
    tensors = canonical_tensors()
    named = reference_names(tensors)
    write(fake_hub.folder, "medusa_lm_head.pt", named, REFERENCE_CONFIG)
    (fake_hub.folder / "model.safetensors").touch()
    (fake_hub.folder / "README.md").touch()
    (fake_hub.folder / "tree.json").write_text("{}")
    checkpoint = load_heads("some/heads", "v2")
    assert_same(checkpoint.tensors, tensors)
    assert checkpoint.path == fake_hub.cache
    assert fake_hub.revisions == ["v2"]
    assert fake_hub.fetched == [
        (name, SHA) for name in ("config.json", "tree.json", "medusa_lm_head.pt")
    ]


def test_of_a_full_model_only_the_shards_with_heads(fake_hub):
    tensors = canonical_tensors()
    shards = {
        "model-00001-of-00002.safetensors": backbone(),
        "model-00002-of-00002.safetensors": reference_names(tensors, "medusa_head."),
    }
    write_sharded(fake_hub.folder, shards, {"model_type": "llama"})
    assert_same(load_heads("some/model").tensors, tensors)
    assert "model-00001-of-00002.safetensors" not in dict(fake_hub.fetched)


def test_a_repository_without_heads(fake_hub):
    (fake_hub.folder / "README.md").touch()
    with pytest.raises(CheckpointError, match="some/heads holds no file of Medusa"):
        resolve_heads("some/heads")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GatedRepoError, "some/heads@v9 is gated"),
        (RevisionNotFoundError, "some/heads has no revision 'v9'"),
        (RepositoryNotFoundError, "'some/heads@v9' are neither a local path nor"),
    ],
)
def test_refusals_of_the_hub(fake_hub, kind, message):
    fake_hub.error = kind.__new__(kind)
    fake_hub.cached = True
    with pytest.raises(CheckpointError, match=message):
        resolve_heads("some/heads", "v9")


def test_without_a_connection_the_cache_answers(fake_hub):
    fake_hub.error = ConnectionError("no route")
    with pytest.raises(CheckpointError, match=r"cannot be fetched .*no route"):
        resolve_heads("some/heads")
    fake_hub.cached = True
    assert resolve_heads("some/heads") == fake_hub.folder


@pytest.mark.parametrize(
    "name", ["a/b/c", "../heads", "heads.safetensors", "", "a b", "a\0b", "a" * 5000]
)
def test_what_cannot_be_an_id_is_not_asked_for(fake_hub, name):
    with pytest.raises(CheckpointError, match="do not exist"):
        resolve_heads(name)
    assert fake_hub.revisions == []
