# SPDX-License-Identifier: Apache-2.0
"""Does the installed vLLM have the functions this plugin was written against?"""

from __future__ import annotations


def require() -> None:
    """Placeholder until the hashes exist."""
