# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: shards, and the manifest that says which of them are whole."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_medusa.calibration.machine import package_versions
from vllm_medusa.errors import ConfigError
from vllm_medusa.files import atomic_path
from vllm_medusa.json_file import read_json, write_json
from vllm_medusa.train.answers import SHARDS

logger = logging.getLogger(__name__)

NAME = "manifest.json"
FORMAT = 1
_MAX_BYTES = 1 << 28

_COUNTS = ("prompts", "answers", "tokens")
_TABLES = (
    "prompts_by_source",
    "answers_by_source",
    "answers_by_task",
    "answers_by_temperature",
    "answers_by_turn",
    "answers_by_finish",
    "left_out",
)


class Manifest:
    """What a folder holds. A shard is written first and entered afterwards, so that
    one without an entry is a leftover, to be written again.

    Args:
        folder: of the run.
        options: those that the answers depend on.

    Raises:
        ConfigError: the folder was begun with other options, or holds shards without
            a manifest, or a shard is missing or was changed.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self._folder = folder
        # As it comes back from the file.
        self._options: dict[str, Any] = json.loads(json.dumps(options))
        self._path = folder / NAME
        self.shards: list[dict[str, Any]] = []
        self.is_complete = False
        self.versions = package_versions()
        if self._path.exists():
            self._read()
        elif any(folder.glob(SHARDS)):
            raise ConfigError(
                f"{folder} holds answers without a {NAME}: choose another folder"
            )
        if not self.shards:
            # Before the first shard, which would be nobody's if the run were killed
            # between the two.
            self._write()

    def records(self) -> Iterator[dict[str, Any]]:
        """All records of the shards, in order.

        Raises:
            ConfigError: a shard is missing or was changed.
        """
        for shard in self.shards:
            path = self._folder / shard["file"]
            try:
                content = path.read_bytes()
            except OSError as error:
                raise _damaged(path, error.strerror or str(error)) from None
            if hashlib.sha256(content).hexdigest() != shard["sha256"]:
                raise _damaged(path, "its content is not what was written")
            for line in content.splitlines():
                yield json.loads(line)

    def add(self, records: Sequence[Mapping[str, Any]], shard: dict[str, Any]) -> None:
        """Write the next shard and enter it.

        Args:
            records: its lines.
            shard: what the manifest says of it.

        Raises:
            OutputError: there is no room, or no permission to write.
        """
        name = f"answers-{len(self.shards):05d}.jsonl"
        lines = "".join(
            json.dumps(record, ensure_ascii=False) + "\n" for record in records
        )
        content = lines.encode()
        with atomic_path(self._folder / name) as temporary:
            temporary.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self.shards.append({"file": name, "sha256": digest, **shard})
        self._write()

    def complete(self) -> None:
        """Say that nothing more is to come."""
        self.is_complete = True
        self._write()

    def totals(self) -> dict[str, Any]:
        """Counts of all shards."""
        totals: dict[str, Any] = {
            name: sum(shard[name] for shard in self.shards) for name in _COUNTS
        }
        for name in _TABLES:
            table: Counter[str] = Counter()
            for shard in self.shards:
                table.update(shard[name])
            totals[name] = dict(sorted(table.items()))
        return totals

    def _write(self) -> None:
        write_json(
            self._path,
            {
                "format": FORMAT,
                "complete": self.is_complete,
                "fingerprint": _fingerprint(self._options),
                "options": self._options,
                "versions": self.versions,
                "totals": self.totals(),
                "shards": self.shards,
            },
        )

    def _read(self) -> None:
        data = read_json(self._path, "manifest", ConfigError, _MAX_BYTES)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ConfigError(f"{self._path} is no manifest: choose another folder")
        try:
            options, fingerprint = data["options"], data["fingerprint"]
            self.shards, self.versions = list(data["shards"]), dict(data["versions"])
            self.is_complete = bool(data["complete"])
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"{self._path} is damaged: choose another folder") from (
                None
            )
        if self.shards and fingerprint != _fingerprint(self._options):
            keys = options.keys() | self._options.keys()
            other = sorted(k for k in keys if options.get(k) != self._options.get(k))
            raise ConfigError(
                f"{self._folder} was begun with other options ({', '.join(other)}): "
                "repeat them, or choose another folder"
            )
        now = package_versions()
        other = sorted(k for k in now if now[k] != self.versions.get(k))
        if other and not self.is_complete:
            logger.warning(
                "%s was begun with other versions of %s: new answers may differ from "
                "what those would give",
                self._folder,
                ", ".join(other),
            )


def _fingerprint(options: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"{path} is damaged ({reason}): bring it back, or begin again in another folder"
    )
