# SPDX-License-Identifier: Apache-2.0
"""Whether answers are a model's, and fit its context: known before an engine starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm_medusa.errors import ConfigError
from vllm_medusa.prompts import user_turn_ids
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.pretrained import load_config, load_tokenizer


def check_tokens(answers: Sequence[Answer], vocab_size: int) -> None:
    """See that the answers are of this model.

    Raises:
        ConfigError: a token is not one of its vocabulary.
    """
    for answer in answers:
        largest = max(answer.prompt_token_ids + answer.answer_token_ids)
        if largest >= vocab_size:
            raise ConfigError(
                f"token {largest} of an answer is not one of the base model's "
                f"{vocab_size}: are these answers of another model? "
                f"({answer.prompt[:60]!r})"
            )


def framed(answers: Sequence[Answer], model: str) -> list[Answer]:
    """The answers with their prompts' token ids, made again where they lack.

    Raises:
        CheckpointError: the model's tokenizer is needed and can't be loaded.
    """
    if all(answer.prompt_token_ids for answer in answers):
        return list(answers)
    tokenizer = load_tokenizer(model)
    return [
        answer
        if answer.prompt_token_ids
        else replace(answer, prompt_token_ids=user_turn_ids(tokenizer, answer.prompt))
        for answer in answers
    ]


def needed_context(
    answers: Sequence[Answer], without_states: Sequence[Answer], model: str
) -> int:
    """Tokens of context in which an engine can compute the states that lack.

    Args:
        answers: all; their tokens are checked.
        without_states: those among them whose states lack.
        model: folder or Hugging Face id of the base model.

    Returns:
        The longest conversation's tokens and one more, 0 where no states lack.

    Raises:
        ConfigError: a token is not the model's, or an answer exceeds its context.
        CheckpointError: the model's config or tokenizer can't be loaded.
    """
    if not answers:
        return 0
    config = load_config(model).get_text_config()
    check_tokens(answers, config.vocab_size)
    lengths = [
        len(answer.prompt_token_ids) + len(answer.answer_token_ids)
        for answer in framed(without_states, model)
    ]
    needed = max(lengths, default=-1) + 1
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and needed > limit:
        prompt = without_states[lengths.index(needed - 1)].prompt
        raise ConfigError(
            f"an answer with {needed - 1} tokens does not fit the model's context of "
            f"{limit}: leave it out ({prompt[:60]!r})"
        )
    return needed
