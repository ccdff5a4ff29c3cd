# SPDX-License-Identifier: Apache-2.0
"""Batches of short runs of answer tokens, whose states are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_medusa.errors import ConfigError
from vllm_medusa.train.store import Corpus


@dataclass(frozen=True)
class CachedBatch:
    """n runs of L tokens, each with K more to look ahead at (see `Batch`).

    Attributes:
        corpus: where the states lie.
        places: [n, L + K] int64, rows of the corpus.
        targets: [K, n, L + K] int64.
    """

    corpus: Corpus
    places: torch.Tensor
    targets: torch.Tensor

    def rows(self, wanted: slice) -> CachedBatch:
        """The batch of some of the runs."""
        return CachedBatch(self.corpus, self.places[wanted], self.targets[:, wanted])

    def hidden(self, device: torch.device) -> torch.Tensor:
        """The states, [n, L + K, H] bfloat16."""
        return self.corpus.hidden[self.places].to(device)


class CachedBatches:
    """Cuts the corpus into runs of `run_length` tokens and deals them out.

    Neighbouring positions share the teacher's states: position i's own
    distribution is head k's target at i - k. Runs instead of single positions save
    computing it K times, and short runs from many answers keep a batch varied.
    Each epoch shifts the cuts and shuffles the runs anew.

    Args:
        corpus: all answer tokens.
        num_heads: tokens to look ahead, K.
        rows_per_batch: runs per batch; fewer if the corpus is small.
        run_length: positions per run, L.
        seed: of cuts and order.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        num_heads: int,
        rows_per_batch: int,
        run_length: int,
        seed: int,
    ) -> None:
        if rows_per_batch < 1:
            raise ConfigError(f"a batch has at least one run, not {rows_per_batch}")
        self.corpus = corpus
        self.num_heads = num_heads
        self.run_length = run_length
        self.seed = seed
        self.num_runs = max(1, len(corpus) // run_length)
        self.rows_per_batch = min(rows_per_batch, self.num_runs)
        self.steps_per_epoch = self.num_runs // self.rows_per_batch
        self._epoch = -1
        self._starts = torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> CachedBatch:
        """The batch of training step `step`, counted over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._deal(epoch)
        begin = index * self.rows_per_batch
        starts = self._starts[begin : begin + self.rows_per_batch]
        length = self.run_length
        wanted = starts[:, None] + torch.arange(length + self.num_heads)
        # [n, L + K]; past the end the last token is repeated, and never a target
        places = wanted.clamp(max=len(self.corpus) - 1)
        owner = self.corpus.answers[places].masked_fill(wanted != places, -1)
        tokens = self.corpus.tokens[places]
        targets = torch.full((self.num_heads, *places.shape), -1)
        for head in range(self.num_heads):
            ahead = slice(head + 1, head + 1 + length)
            valid = (owner[:, ahead] == owner[:, :length]) & (owner[:, :length] >= 0)
            targets[head, :, :length] = torch.where(valid, tokens[:, ahead], -1)
        return CachedBatch(self.corpus, places, targets)

    def _deal(self, epoch: int) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        shift = int(torch.randint(self.run_length, (1,), generator=generator))
        order = torch.randperm(self.num_runs, generator=generator)
        self._starts = order * self.run_length + (shift if epoch else 0)
        self._epoch = epoch
