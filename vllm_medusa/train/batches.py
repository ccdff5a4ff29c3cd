# SPDX-License-Identifier: Apache-2.0
"""Batches of short runs of answer tokens, a pure function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_medusa.train.store import Corpus


@dataclass(frozen=True)
class Batch:
    """n runs of L tokens, each with K more to look ahead at.

    Attributes:
        hidden: [n, L + K, H] bfloat16.
        tokens: [n, L + K] int64, base vocabulary.
        valid: [K, n, L] bool; whether the target of head k at that position is a
            token of the same answer.
    """

    hidden: torch.Tensor
    tokens: torch.Tensor
    valid: torch.Tensor


class BatchSampler:
    """Cuts the corpus into runs of `run_length` tokens and deals them out.

    Neighbouring positions share the teacher's states: position i's own
    distribution is head k's target at i - k. Runs instead of single positions save
    computing it K times, and short runs from many answers keep a batch varied.
    Each epoch shifts the cuts and shuffles the runs anew.

    Args:
        corpus: all answer tokens.
        num_heads: tokens to look ahead, K.
        batch_size: positions per batch, a multiple of `run_length`.
        run_length: positions per run, L.
        seed: of cuts and order.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        num_heads: int,
        batch_size: int,
        run_length: int,
        seed: int,
    ) -> None:
        self.corpus = corpus
        self.num_heads = num_heads
        self.run_length = run_length
        self.seed = seed
        self.num_runs = max(1, len(corpus) // run_length)
        self.runs_per_batch = min(max(1, batch_size // run_length), self.num_runs)
        self.steps_per_epoch = self.num_runs // self.runs_per_batch
        self._epoch = -1
        self._starts = torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Batch:
        """The batch of training step `step`, counted over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._deal(epoch)
        begin = index * self.runs_per_batch
        starts = self._starts[begin : begin + self.runs_per_batch]
        size = self.run_length + self.num_heads
        wanted = starts[:, None] + torch.arange(size)
        # [n, L + K]; past the end the last token is repeated, and never a target
        rows = wanted.clamp(max=len(self.corpus) - 1)
        owner = self.corpus.answers[rows].masked_fill(wanted != rows, -1)
        here = owner[:, : self.run_length]
        valid = torch.stack(
            [
                (owner[:, head : head + self.run_length] == here) & (here >= 0)
                for head in range(1, self.num_heads + 1)
            ]
        )
        return Batch(self.corpus.hidden[rows], self.corpus.tokens[rows], valid)

    def _deal(self, epoch: int) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shift = int(torch.randint(self.run_length, (1,), generator=generator))
        order = torch.randperm(self.num_runs, generator=generator)
        self._starts = order * self.run_length + (shift if epoch else 0)
        self._epoch = epoch
