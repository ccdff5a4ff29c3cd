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
from vllm_medusa.prompts import read_conversations
from vllm_medusa.train.answer_checks import framed
from vllm_medusa.train.answering import evaluation_store, training_store
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.backbone import load_backbone
from vllm_medusa.train.batches import Batches
from vllm_medusa.train.cached_batches import CachedBatches
from vllm_medusa.train.live_batches import LiveBatches, corpus_of
from vllm_medusa.train.lm_head import read_lm_head
from vllm_medusa.train.options import TrainOptions
from vllm_medusa.train.packing_check import check_packing
from vllm_medusa.train.processes import Processes
from vllm_medusa.train.sharding import shard_base
from vllm_medusa.train.split import (
    EXCLUDED,
    HELD_OUT,
    TRAINING,
    sides_of,
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
    return Data(
        lm_head=read_lm_head(options.model),
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
    answers = packable(store.answers, options, length)
    is_sharded = compute.fsdp and processes.count > 1
    # Sharded, no device needs room for all of it.
    place = "cpu" if is_sharded else processes.device
    base = load_backbone(options.model, compute.dtype, compute.quantization, place)
    base.requires_grad_(False)
    check_packing(base)
    lm_head = base.get_output_embeddings().weight.detach().cpu()
    backbone = base.get_decoder()
    if is_sharded:
        shard_base(backbone, processes)
    evaluation = None
    if options.evaluation_prompts is not None:
        asked, _ = fit_rows(evaluation_store(options).answers, options.model, length)
        evaluation = corpus_of(asked, backbone, length)
    return Data(
        lm_head=lm_head,
        tokens=answers.training_tokens,
        batches=LiveBatches(
            answers.training,
            backbone,
            num_heads=options.heads.num_heads,
            rows_per_batch=options.rows_per_batch,
            sequence_length=length,
            seed=options.fit.seed,
        ),
        held_out=corpus_of(answers.held_out, backbone, length),
        evaluation=evaluation,
        counts=answers.counts,
    )


@dataclass(frozen=True)
class PackableAnswers:
    """Answers with their prompts' tokens, each fitting a row.

    Attributes:
        training: to train on.
        held_out: to measure on; no conversation is on both sides.
        counts: numbers for the recipe.
    """

    training: list[Answer]
    held_out: list[Answer]
    counts: dict[str, Any]

    @property
    def training_tokens(self) -> torch.Tensor:
        """[num_tokens] int64, the training answers end to end."""
        return torch.tensor([t for a in self.training for t in a.answer_token_ids])


def packable(
    answers: Sequence[Answer], options: SplitOptions, length: int
) -> PackableAnswers:
    """Answers cut to rows of `length` tokens, and split by their conversations.

    Raises:
        ConfigError: a side of the split is empty.
        CheckpointError: the model's tokenizer is needed and can't be loaded.
    """
    fitting, left_out = fit_rows(answers, options.model, length)
    sides = split(fitting, options)
    training, held_out = (
        _on_side(fitting, sides, wanted) for wanted in (TRAINING, HELD_OUT)
    )
    return PackableAnswers(training, held_out, counts(fitting, sides) | left_out)


def _on_side(
    answers: Sequence[Answer], sides: Sequence[int], wanted: int
) -> list[Answer]:
    return [a for a, side in zip(answers, sides, strict=True) if side == wanted]


def fit_rows(
    answers: Sequence[Answer], model: str, length: int
) -> tuple[list[Answer], dict[str, int]]:
    """Answers with their prompts' tokens, cut to `length` tokens in all.

    An answer whose prompt leaves no room is left out.

    Returns:
        The answers, and how many are shortened and left out.
    """
    fitting: list[Answer] = []
    shortened = 0
    for answer in framed(answers, model):
        room = length - len(answer.prompt_token_ids)
        if room < 1:
            continue
        tokens = answer.answer_token_ids
        shortened += len(tokens) > room
        fitting.append(replace(answer, answer_token_ids=tokens[:room]))
    dropped = len(answers) - len(fitting)
    return fitting, {"shortened_answers": shortened, "dropped_answers": dropped}


class SplitOptions(Protocol):
    """Which answers are held out, and which are used for nothing."""

    @property
    def model(self) -> str:
        """Folder or Hugging Face id of the base model."""

    @property
    def evaluation_prompts(self) -> Path | None:
        """File of prompts whose answers are excluded."""

    @property
    def held_out(self) -> float:
        """Share of the other prompts whose answers are held out."""


def split(answers: Sequence[Answer], options: SplitOptions) -> list[int]:
    """The side of each answer (see `split.sides_of`).

    Raises:
        ConfigError: none is left to train on, or to hold out.
    """
    forbidden: list[str] = []
    if options.evaluation_prompts is not None:
        asked = read_conversations(options.evaluation_prompts)
        forbidden = [turn for turns in asked for turn in turns]
    sides = sides_of(answers, forbidden, options.held_out)
    if not {HELD_OUT, TRAINING} <= set(sides):
        raise ConfigError(
            f"{len(answers)} answers are too few to train on and to hold out "
            f"{options.held_out:.1%} of them: generate more, or raise held_out"
        )
    return sides


def counts(answers: Sequence[Answer], sides: Sequence[int]) -> dict[str, Any]:
    """What the recipe says of the answers."""
    kept, held_out = (
        _on_side(answers, sides, wanted) for wanted in (TRAINING, HELD_OUT)
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
