# SPDX-License-Identifier: Apache-2.0
"""From stored answers to what heads are trained and measured on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from vllm_medusa.errors import ConfigError
from vllm_medusa.prompts import read_prompts, user_turn_ids
from vllm_medusa.train.answering import evaluation_store, training_store
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.backbone import load_backbone
from vllm_medusa.train.batches import Batches
from vllm_medusa.train.cached_batches import CachedBatches
from vllm_medusa.train.live_batches import LiveBatches, corpus_of
from vllm_medusa.train.lm_head import read_lm_head
from vllm_medusa.train.options import TrainOptions
from vllm_medusa.train.processes import Processes
from vllm_medusa.train.sharding import shard_base
from vllm_medusa.train.split import (
    EXCLUDED,
    HELD_OUT,
    TRAINING,
    normal_prompts,
    side,
)
from vllm_medusa.train.store import Corpus


@dataclass(frozen=True)
class Data:
    """All that a fit reads.

    Attributes:
        lm_head: [V, H], the base model's, on the CPU.
        tokens: [num_tokens] int64, of the training answers.
        batches: what to train on.
        held_out: what the curve and the report show.
        evaluation: answers to the evaluation prompts, if there are any.
        counts: numbers for the recipe.
    """

    lm_head: torch.Tensor
    tokens: torch.Tensor
    batches: Batches
    held_out: Corpus
    evaluation: Corpus | None
    counts: dict[str, Any]


def load_data(options: TrainOptions, processes: Processes) -> Data:
    """Read the stores, and the base model if it runs along.

    Raises:
        ConfigError: there are too few answers, or of another model, or a store is
            damaged.
        CheckpointError: the base model can't be used.
        UnsupportedError: it can't be quantised on this device.
    """
    return (_live if options.compute.is_live else _cached)(options, processes)


def _cached(options: TrainOptions, processes: Processes) -> Data:
    store = training_store(options)
    sides = split(store.answers, options)
    corpus = store.load([chosen == TRAINING for chosen in sides])
    evaluation = None
    if options.evaluation_prompts is not None:
        evaluation = evaluation_store(options).load()
    lm_head = read_lm_head(options.model)
    check_tokens(store.answers, len(lm_head))
    return Data(
        lm_head=lm_head,
        tokens=corpus.tokens,
        batches=CachedBatches(
            corpus,
            num_heads=options.heads.num_heads,
            rows_per_batch=options.rows_per_batch,
            run_length=options.fit.run_length,
            seed=options.fit.seed,
        ),
        held_out=store.load([chosen == HELD_OUT for chosen in sides]),
        evaluation=evaluation,
        counts=counts(store.answers, sides),
    )


def _live(options: TrainOptions, processes: Processes) -> Data:
    compute, length = options.compute, options.fit.sequence_length
    store = training_store(options)
    answers, left_out = fit_rows(store.answers, options.model, length)
    sides = split(answers, options)
    by_side: dict[int, list[Answer]] = {TRAINING: [], HELD_OUT: [], EXCLUDED: []}
    for answer, chosen in zip(answers, sides, strict=True):
        by_side[chosen].append(answer)
    is_sharded = compute.fsdp and processes.count > 1
    # Sharded, no device needs room for all of it.
    place = "cpu" if is_sharded else processes.device
    base = load_backbone(options.model, compute.dtype, compute.quantization, place)
    base.requires_grad_(False)
    lm_head = base.get_output_embeddings().weight.detach().cpu()
    check_tokens(answers, len(lm_head))
    backbone = base.get_decoder()
    if is_sharded:
        shard_base(backbone, processes)
    evaluation = None
    if options.evaluation_prompts is not None:
        asked, _ = fit_rows(evaluation_store(options).answers, options.model, length)
        evaluation = corpus_of(asked, backbone, length)
    training = by_side[TRAINING]
    return Data(
        lm_head=lm_head,
        tokens=torch.tensor([t for a in training for t in a.answer_token_ids]),
        batches=LiveBatches(
            training,
            backbone,
            num_heads=options.heads.num_heads,
            rows_per_batch=options.rows_per_batch,
            sequence_length=length,
            seed=options.fit.seed,
        ),
        held_out=corpus_of(by_side[HELD_OUT], backbone, length),
        evaluation=evaluation,
        counts=counts(answers, sides) | left_out,
    )


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


def fit_rows(
    answers: Sequence[Answer], model: str, length: int
) -> tuple[list[Answer], dict[str, int]]:
    """Answers with their prompts' tokens, cut to `length` tokens in all.

    An answer whose prompt leaves no room is left out.

    Returns:
        The answers, and how many are shortened and left out.
    """
    from transformers import AutoTokenizer

    tokenizer = None
    fitting: list[Answer] = []
    shortened = 0
    for answer in answers:
        prompt = answer.prompt_token_ids
        if not prompt:
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
            prompt = user_turn_ids(tokenizer, answer.prompt)
        room = length - len(prompt)
        if room < 1:
            continue
        tokens = answer.answer_token_ids
        shortened += len(tokens) > room
        fitting.append(
            replace(answer, prompt_token_ids=prompt, answer_token_ids=tokens[:room])
        )
    dropped = len(answers) - len(fitting)
    return fitting, {"shortened_answers": shortened, "dropped_answers": dropped}


class SplitOptions(Protocol):
    """Which answers are held out, and which are used for nothing."""

    @property
    def evaluation_prompts(self) -> Path | None:
        """File of prompts whose answers are excluded."""

    @property
    def held_out(self) -> float:
        """Share of the other prompts whose answers are held out."""


def split(answers: Sequence[Answer], options: SplitOptions) -> list[int]:
    """The side of each answer (see `split.side`).

    Raises:
        ConfigError: none is left to train on, or to hold out.
    """
    forbidden: set[str] = set()
    if options.evaluation_prompts is not None:
        forbidden = normal_prompts(read_prompts(options.evaluation_prompts))
    sides = [side(answer, forbidden, options.held_out) for answer in answers]
    if not {HELD_OUT, TRAINING} <= set(sides):
        raise ConfigError(
            f"{len(answers)} answers are too few to train on and to hold out "
            f"{options.held_out:.1%} of them: generate more, or raise held_out"
        )
    return sides


def counts(answers: Sequence[Answer], sides: Sequence[int]) -> dict[str, Any]:
    """What the recipe says of the answers."""
    kept, held_out = (
        [a for a, chosen in zip(answers, sides, strict=True) if chosen == wanted]
        for wanted in (TRAINING, HELD_OUT)
    )
    return {
        "training_answers": len(kept),
        "training_tokens": sum(len(a.answer_token_ids) for a in kept),
        "held_out_tokens": sum(len(a.answer_token_ids) for a in held_out),
        "excluded_answers": list(sides).count(EXCLUDED),
        "answers_by_source": dict(Counter(answer.source for answer in kept)),
        "answers_by_temperature": {
            str(t): n for t, n in sorted(Counter(a.temperature for a in kept).items())
        },
    }
