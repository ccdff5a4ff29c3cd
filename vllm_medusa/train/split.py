# SPDX-License-Identifier: Apache-2.0
"""Which answers are trained on, and which are held out to measure."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable

from vllm_medusa.train.answers import Answer

HELD_OUT, TRAINING, EXCLUDED = range(3)
"""Sides of the split."""


def normal_prompts(prompts: Iterable[str]) -> set[str]:
    """The prompts in the form in which `side` compares them."""
    return {_normal(prompt) for prompt in prompts}


def side(answer: Answer, forbidden: Collection[str], held_out: float) -> int:
    """The side of an answer, by a hash of its prompt.

    So one prompt never stands on both sides, in whichever files.

    Args:
        answer: any.
        forbidden: prompts whose answers are excluded, from `normal_prompts`.
        held_out: share of the prompts that is held out.
    """
    prompt = _normal(answer.prompt)
    if prompt in forbidden:
        return EXCLUDED
    return TRAINING if zlib.crc32(prompt.encode()) / 2**32 >= held_out else HELD_OUT


def _normal(prompt: str) -> str:
    return " ".join(prompt.lower().split())
