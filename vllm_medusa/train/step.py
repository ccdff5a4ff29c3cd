# SPDX-License-Identifier: Apache-2.0
"""Losses and gradients of one training step, shared out and in parts."""

from __future__ import annotations

import torch
from torch import nn

from vllm_medusa.errors import ConfigError
from vllm_medusa.train.batches import Batch, Batches
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.heads_loss import Guesses, head_weights
from vllm_medusa.train.processes import Processes
from vllm_medusa.train.sharding import delay_sync
from vllm_medusa.train.vocabulary import (
    SampledVocabulary,
    inverse_map,
    sample_vocabulary,
)


class TrainingStep:
    """Runs a step's batch forward and backward.

    The batch, the sampled vocabulary and each guess' weight follow from (seed, step)
    and the whole batch. So however many processes and parts share a batch, they add up
    to the same gradient; only dropout draws for each part.

    Args:
        loss: a `HeadsLoss`, as all processes share it.
        heads: its heads.
        batches: of the whole step.
        options: of the fit.
        processes: which share a batch.
        parts: in which each process does its share.

    Raises:
        ConfigError: a batch has too few rows to be shared out evenly.
    """

    def __init__(
        self,
        loss: nn.Module,
        heads: TrainableHeads,
        batches: Batches,
        options: FitOptions,
        processes: Processes,
        parts: int,
    ) -> None:
        self.loss = loss
        self.heads = heads
        self.batches = batches
        self.options = options
        self.processes = processes
        self.parts = parts
        rows, shares = batches.rows_per_batch, parts * processes.count
        if rows % shares:
            raise ConfigError(
                f"a batch of {rows} rows can't be shared evenly by {processes.count} "
                f"processes in {parts} parts each: change batch_size"
            )
        self._rows_per_part = rows // shares
        spec = heads.spec
        assert spec.vocab_size is not None
        self._draft_index = inverse_map(heads.token_map.cpu(), spec.vocab_size)
        self._head_weights = head_weights(spec.num_heads, options.head_decay)

    def run(self, step: int) -> torch.Tensor:
        """Leave the gradients of a step at the weights.

        Returns:
            Each head's mean loss in nats over the whole batch, [K] float64.
        """
        options = self.options
        seed = options.seed * 1_000_003 + step
        batch = self.batches.batch(step)
        # [K, R, W] into the draft vocabulary
        draft = torch.where(
            batch.targets >= 0, self._draft_index[batch.targets.clamp(min=0)], -1
        )
        vocabulary = sample_vocabulary(
            len(self.heads.token_map),
            options.sampled_vocab,
            draft,
            torch.Generator().manual_seed(seed),
        )
        truth = torch.where(draft >= 0, vocabulary.position[draft.clamp(min=0)], -1)
        device = self.processes.device
        vocabulary = SampledVocabulary(
            vocabulary.ids.to(device),
            vocabulary.correction.to(device),
            vocabulary.position,
        )
        counts = (batch.targets >= 0).sum((1, 2)).clamp(min=1)
        losses = torch.zeros(len(counts), dtype=torch.float64)
        self.heads.train()
        for part in range(self.parts):
            number = part * self.processes.count + self.processes.rank
            begin = number * self._rows_per_part
            rows = slice(begin, begin + self._rows_per_part)
            torch.manual_seed((seed * 65_537 + number) % 2**63)  # dropout's
            with delay_sync(self.loss, part == self.parts - 1):
                losses += self._part(
                    batch.rows(rows), truth[:, rows], vocabulary, counts
                )
        return self.processes.total(losses)

    def _part(
        self,
        batch: Batch,
        # [K, R, W]
        truth: torch.Tensor,
        vocabulary: SampledVocabulary,
        # [K]
        counts: torch.Tensor,
    ) -> torch.Tensor:
        """Add the gradients of some rows; return their share of the mean losses."""
        device = self.processes.device
        valid = (batch.targets >= 0).flatten(1)
        # What head 1 can't guess the others can't.
        places = valid[0].nonzero()[:, 0]
        weights = valid[:, places] / counts[:, None]
        # Gradients are averaged over the processes, not added.
        scale = self._head_weights[:, None] * self.processes.count
        guesses = Guesses(
            places.to(device),
            truth.flatten(1)[:, places].to(device),
            (weights * scale).to(device),
            vocabulary,
        )
        hidden = batch.hidden(device).flatten(0, 1)
        loss, losses = self.loss(hidden, guesses)
        loss.backward()
        return (losses.double().cpu() * weights).sum(1)
