# SPDX-License-Identifier: Apache-2.0
"""Answers to train on and to hold out."""

from __future__ import annotations

from vllm_medusa.train.answer_checks import check_tokens
from vllm_medusa.train.answers import read_answers
from vllm_medusa.train.data import PackableAnswers, packable
from vllm_medusa.train.medusa2.options import Medusa2Options


def read_data(options: Medusa2Options, vocab_size: int) -> PackableAnswers:
    """Read the files of answers, and split them by their conversations.

    Raises:
        ConfigError: a file is missing or malformed, a token is not the model's, or a
            side of the split is empty.
    """
    found = [answer for path in options.answers for answer in read_answers(path)]
    check_tokens(found, vocab_size)
    return packable(found, options, options.fit.sequence_length)
