# SPDX-License-Identifier: Apache-2.0
"""Which answers are trained on, and which are held out to measure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

from vllm_medusa.prompts import normalised
from vllm_medusa.train.answers import Answer

HELD_OUT, TRAINING, EXCLUDED = range(3)
"""Sides of the split."""


def sides_of(
    answers: Sequence[Answer], forbidden: Iterable[str], held_out: float
) -> list[int]:
    """The side of each answer, by a hash of the first prompt of its conversation.

    So neither a conversation nor a prompt that begins one ever stands on both sides,
    in whichever files.

    Args:
        answers: any.
        forbidden: prompts; conversations in which one is asked are excluded.
        held_out: share of the conversations that is held out.
    """
    never = {normalised(prompt) for prompt in forbidden}
    excluded = {
        normalised(answer.opening)
        for answer in answers
        if {normalised(answer.prompt), normalised(answer.opening)} & never
    }
    return [_side(normalised(a.opening), excluded, held_out) for a in answers]


def _side(opening: str, excluded: set[str], held_out: float) -> int:
    if opening in excluded:
        return EXCLUDED
    return TRAINING if zlib.crc32(opening.encode()) / 2**32 >= held_out else HELD_OUT
