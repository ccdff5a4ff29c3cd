# SPDX-License-Identifier: Apache-2.0
"""Servers on Model Runner V2 without a GPU: Triton's interpreter in all processes."""

from __future__ import annotations

import os
from pathlib import Path

from tests import interpreter

_ROOT = Path(__file__).parents[3]
_EVERY_PROCESS = """
from tests import interpreter

interpreter.install()
"""
# vLLM calls its plugins in every process, before it makes a configuration.
_PLUGIN = """
[vllm.general_plugins]
interpreter = tests.interpreter:adapt_vllm
"""
_METADATA = """Metadata-Version: 2.1
Name: interpreted
Version: 1
"""


def environment(folder: Path) -> dict[str, str | None]:
    """Return what to set for a server; `folder` gets what its processes import."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(_EVERY_PROCESS.lstrip())
    metadata = folder / "interpreted-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(_METADATA)
    (metadata / "entry_points.txt").write_text(_PLUGIN.lstrip())
    path = [str(folder), os.environ.get("PYTHONPATH", ""), str(_ROOT)]
    return {
        **interpreter.ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        # One process less; see `plain_server`.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
