# SPDX-License-Identifier: Apache-2.0
"""Is the plugin of another process or machine this one?

Every rank proposes and verifies for itself. Ranks of different code would accept
different tokens and go on with different texts.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_medusa import __version__
from vllm_medusa.errors import UnsupportedError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_ATTRIBUTE = "medusa_installation"


@cache
def installation() -> dict[str, str]:
    """Return this process's plugin: "version", "source" (the SHA-256 of its Python
    files by path), and the "host" that has it. Takes some 20 ms, once."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        content = hashlib.sha256(file.read_bytes()).digest()
        digest.update(str(file.relative_to(package)).encode() + b"\0" + content)
    return {
        "version": __version__,
        "source": digest.hexdigest(),
        "host": socket.gethostname(),
    }


def note_installation(vllm_config: VllmConfig) -> None:
    """Let an engine's workers know its plugin.

    An attribute travels with the configuration to every worker. In `additional_config`
    it would count for the name of vLLM's cache of compiled models, which another host
    or another version of the plugin could not use then.
    """
    setattr(vllm_config, _ATTRIBUTE, installation())


def noted_installation(vllm_config: VllmConfig) -> Mapping[str, str]:
    """Return what `note_installation` noted."""
    noted: Mapping[str, str] = getattr(vllm_config, _ATTRIBUTE)
    return noted


def require_same(
    # as `installation` gave it where the engine was started
    engine: Mapping[str, str],
    # the same of the process in question, and its name
    other: Mapping[str, str],
    where: str,
) -> None:
    """Refuse a plugin that differs from that of the engine.

    On one host sources are not compared: both are the same files, which someone who
    works on the plugin may have changed in between.

    Raises:
        UnsupportedError: naming both, and where.
    """
    keys = ["version"] if engine["host"] == other["host"] else ["version", "source"]
    if any(engine[key] != other[key] for key in keys):
        raise UnsupportedError(
            f"{where} has {_describe(other)}, but the engine was started with "
            f"{_describe(engine)}: install the same on every node"
        )


def _describe(plugin: Mapping[str, str]) -> str:
    return f"vllm-medusa {plugin['version']} (source {plugin['source'][:12]})"
