# SPDX-License-Identifier: Apache-2.0
"""Fetching heads from Hugging Face: only the files that hold them."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vllm_medusa.checkpoint.locate import choose_weights, heads_shards
from vllm_medusa.errors import CheckpointError
from vllm_medusa.side_files import SIDE_FILES


def fetch_heads(repository: str, revision: str | None = None) -> Path:
    """Download config, side files and weights; of a sharded model only heads' shards.

    Without a connection the Hugging Face cache answers.

    Args:
        repository: id of a Hugging Face repository.
        revision: branch, tag or commit.

    Returns:
        The folder in the Hugging Face cache.

    Raises:
        CheckpointError: no such repository or revision, no access, no heads in it,
            or neither a connection nor a cached copy.
    """
    label = repository if revision is None else f"{repository}@{revision}"
    try:
        return _download(repository, revision, label)
    except CheckpointError:
        raise
    except GatedRepoError as error:
        raise CheckpointError(
            f"{label} is gated: ask for access, then set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repository} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"heads {label!r} are neither a local path nor a Hugging Face repository "
            "you can read"
        ) from error
    except Exception as unreachable:  # each HTTP library has errors of its own
        try:
            return Path(
                snapshot_download(repository, revision=revision, local_files_only=True)
            )
        except (OSError, ValueError):
            raise CheckpointError(
                f"heads {label!r} are no local path, not in the Hugging Face cache, "
                f"and cannot be fetched ({type(unreachable).__name__}: {unreachable})"
            ) from unreachable


def _download(repository: str, revision: str | None, label: str) -> Path:
    info = HfApi().model_info(repository, revision=revision)
    names = {entry.rfilename for entry in info.siblings or []}
    chosen = choose_weights(names)
    if chosen is None:
        raise CheckpointError(f"{label} holds no file of Medusa heads")
    # One commit for all files, should the branch move meanwhile.
    beside = [name for name in ("config.json", *SIDE_FILES) if name in names]
    files = [
        Path(hf_hub_download(repository, name, revision=info.sha))
        for name in (*beside, chosen)
    ]
    if chosen.endswith(".index.json"):
        for shard in heads_shards(files[-1]):
            hf_hub_download(repository, shard, revision=info.sha)
    return files[-1].parent
