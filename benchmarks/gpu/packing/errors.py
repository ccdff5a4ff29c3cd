# SPDX-License-Identifier: Apache-2.0
"""The one error of packing."""

from __future__ import annotations

from vllm_medusa.errors import MedusaError


class PackingError(MedusaError):
    """A download or a file is not what it must be; the message says what to do."""
