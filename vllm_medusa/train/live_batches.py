# SPDX-License-Identifier: Apache-2.0
"""Batches of packed conversations, whose states a base model computes on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vllm_medusa.train.answers import Answer
from vllm_medusa.train.backbone import hidden_states
from vllm_medusa.train.packing import PackedBatch, PackedSampler
from vllm_medusa.train.store import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LiveBatch:
    """B packed rows of T tokens (see `Batch`).

    Attributes:
        backbone: the frozen base model.
        packed: the rows.
        targets: [K, B, T] int64.
    """

    backbone: PreTrainedModel
    packed: PackedBatch
    targets: torch.Tensor

    def rows(self, wanted: slice) -> LiveBatch:
        """The batch of some of the rows."""
        packed = self.packed.rows(wanted)
        return LiveBatch(self.backbone, packed, self.targets[:, wanted])

    @torch.no_grad()
    def hidden(self, device: torch.device) -> torch.Tensor:
        """The states, [B, T, H] in the backbone's dtype."""
        return hidden_states(self.backbone, self.packed.to(device))


class LiveBatches:
    """Packs answers with their prompts; every answer is there once per epoch.

    Args:
        answers: with their `prompt_token_ids`.
        backbone: frozen, in evaluation mode.
        num_heads: tokens to look ahead, K.
        rows_per_batch: rows per batch.
        sequence_length: tokens per row.
        seed: of packing and order.

    Raises:
        ConfigError: an answer has no prompt or does not fit a row.
    """

    def __init__(
        self,
        answers: Sequence[Answer],
        backbone: PreTrainedModel,
        *,
        num_heads: int,
        rows_per_batch: int,
        sequence_length: int,
        seed: int,
    ) -> None:
        self.backbone = backbone
        self.num_heads = num_heads
        self.rows_per_batch = rows_per_batch
        self._sampler = PackedSampler(answers, sequence_length, rows_per_batch, seed)
        self.steps_per_epoch = self._sampler.steps_per_epoch

    def batch(self, step: int) -> LiveBatch:
        """The batch of training step `step`, counted over all epochs."""
        packed = self._sampler.batch(step)
        ahead = range(2, self.num_heads + 2)
        targets = torch.stack([packed.targets(places) for places in ahead])
        return LiveBatch(self.backbone, packed, targets)


@torch.no_grad()
def corpus_of(
    answers: Sequence[Answer], backbone: PreTrainedModel, sequence_length: int
) -> Corpus:
    """Answers with the states that a base model gives them, to measure on.

    Raises:
        ConfigError: an answer has no prompt or does not fit a row.
    """
    sampler = PackedSampler(answers, sequence_length, 1, seed=0)
    hidden: dict[int, torch.Tensor] = {}
    for step in range(sampler.steps_per_epoch):
        packed = sampler.batch(step)
        states = hidden_states(backbone, packed.to(backbone.device))[0].cpu()
        drawn = packed.targets(1)[0] >= 0
        for segment, number in enumerate(sampler.numbers(step)[0], start=1):
            here = drawn & (packed.segments[0] == segment)
            hidden[number] = states[here].bfloat16()
    lengths = torch.tensor([len(answer.answer_token_ids) for answer in answers])
    return Corpus(
        torch.tensor([t for answer in answers for t in answer.answer_token_ids]),
        torch.cat([hidden[number] for number in range(len(answers))]),
        torch.arange(len(answers)).repeat_interleave(lengths),
    )
