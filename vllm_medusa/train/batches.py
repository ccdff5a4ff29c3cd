# SPDX-License-Identifier: Apache-2.0
"""What a training step is given, whichever way the hidden states come."""

from __future__ import annotations

from typing import Protocol

import torch


class Batch(Protocol):
    """R rows of W states of the base model, and what the heads are to guess."""

    @property
    def targets(self) -> torch.Tensor:
        """[K, R, W] int64 on the CPU.

        The state at (r, w) is what some token t was drawn from; targets[k, r, w] is the
        token k + 1 places after t, in the base vocabulary, or -1 if it stands in no or
        another answer. The base model's distribution for it comes from the state at
        (r, w + k + 1).
        """

    def rows(self, wanted: slice) -> Batch:
        """The batch of some of the rows."""

    def hidden(self, device: torch.device) -> torch.Tensor:
        """The states, [R, W, H], without gradient."""


class Batches(Protocol):
    """Batches of all training steps, a pure function of (seed, step).

    Attributes:
        rows_per_batch: R, the same for all.
        steps_per_epoch: batches that cover the data once.
    """

    rows_per_batch: int
    steps_per_epoch: int

    def batch(self, step: int) -> Batch:
        """The batch of training step `step`, counted over all epochs."""
