# SPDX-License-Identifier: Apache-2.0
"""Errors a user can cause. Each says what is wrong, with what value, what to do."""

from __future__ import annotations

from collections.abc import Iterable


class MedusaError(ValueError):
    """Base of every error that vllm-medusa raises for bad input."""


class ConfigError(MedusaError):
    """An option is unknown, malformed or contradicts another one."""


class CheckpointError(MedusaError):
    """A heads checkpoint is missing, damaged, or does not fit the base model."""


class TreeError(MedusaError):
    """A token tree is malformed, or deeper or wider than the heads allow."""


class UnsupportedError(MedusaError):
    """A valid request that this vLLM, platform or model cannot serve with Medusa."""


class OutputError(MedusaError):
    """A file or folder can't be written, or another process is writing there."""


class QualityError(MedusaError):
    """Training moved the backbone further from the original than its bounds allow."""


def refuse_first(
    # (whether it is in use, its name and what to do)
    features: Iterable[tuple[bool, str]],
) -> None:
    """Refuse the first feature that is in use.

    Raises:
        UnsupportedError: naming it.
    """
    for is_used, feature in features:
        if is_used:
            raise UnsupportedError(f"Medusa does not support {feature}")
