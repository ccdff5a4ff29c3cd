# SPDX-License-Identifier: Apache-2.0
"""Result files: one JSON object each, with what it was measured on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_medusa.calibration.machine import describe_machine
from vllm_medusa.files import atomic_path

SCHEMA_VERSION = 1


def without_folders(words: Sequence[str]) -> str:
    """A command line as typed; of an absolute path only the last part."""
    return " ".join(re.sub(r"(?<![^=:])/\S*/", "", word) for word in words)


def write_result_file(
    path: Path, kind: Mapping[str, str], command: str, content: Mapping[str, Any]
) -> None:
    """Write a result with its provenance; a reader never meets half of one.

    `kind` says what it is a result of. ValueError if `content` holds a number that
    JSON has no word for.
    """
    document = {
        "schema": SCHEMA_VERSION,
        **kind,
        "command": command,
        "machine": describe_machine(),
        **content,
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n")
