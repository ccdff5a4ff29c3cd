# SPDX-License-Identifier: Apache-2.0
"""Pictures as PNG files, without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_medusa.errors import ConfigError
from vllm_medusa.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_matplotlib(what: str) -> None:
    """Raise ConfigError if matplotlib, which draws `what`, is missing: better before
    hours of work."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"{what} needs matplotlib: pip install 'vllm-medusa[train]'"
        ) from None


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; a reader never meets half of it.

    Raises:
        OutputError: there is no room, or no permission to write.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
