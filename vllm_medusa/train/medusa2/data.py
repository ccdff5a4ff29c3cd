# SPDX-License-Identifier: Apache-2.0
"""Answers to train on and to hold out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_medusa.train.answers import Answer, read_answers
from vllm_medusa.train.data import check_tokens, counts, fit_rows, split
from vllm_medusa.train.medusa2.options import Medusa2Options
from vllm_medusa.train.split import HELD_OUT, TRAINING


@dataclass(frozen=True)
class Answers:
    """Answers with their prompts' tokens, each fitting a row.

    Attributes:
        training: to train on.
        held_out: to measure on; no prompt is on both sides.
        counts: numbers for the recipe.
    """

    training: list[Answer]
    held_out: list[Answer]
    counts: dict[str, Any]


def read_data(options: Medusa2Options, vocab_size: int) -> Answers:
    """Read the files of answers, and split them by a hash of the prompt.

    Raises:
        ConfigError: a file is missing or malformed, a token is not the model's, or a
            side of the split is empty.
    """
    found = [answer for path in options.answers for answer in read_answers(path)]
    fitting, left_out = fit_rows(found, options.model, options.fit.sequence_length)
    check_tokens(fitting, vocab_size)
    sides = split(fitting, options)
    training, held_out = (
        [answer for answer, side in zip(fitting, sides, strict=True) if side == wanted]
        for wanted in (TRAINING, HELD_OUT)
    )
    return Answers(training, held_out, counts(fitting, sides) | left_out)
