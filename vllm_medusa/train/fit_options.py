# SPDX-License-Identifier: Apache-2.0
"""How heads are fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_medusa.errors import ConfigError


@dataclass(frozen=True)
class FitOptions:
    """How heads are fitted.

    Attributes:
        epochs: passes over the corpus.
        batch_size: tokens per step, of all processes together: answer tokens with
            cached states, tokens of packed rows with live ones.
        run_length: neighbouring positions taken together (see `CachedBatches`).
        sequence_length: tokens per packed row (see `LiveBatches`).
        learning_rate: peak of the cosine schedule.
        warmup: share of the steps over which the rate rises from 0.
        weight_decay: AdamW's.
        clip: largest norm of the gradient.
        hard_weight: share of the true token in the target, the rest is the base
            model's distribution at the true token's position.
        head_decay: head k's loss counts head_decay^k.
        sampled_vocab: tokens the softmax of one step runs over.
        dropout: on the inner activations of "mlp" blocks.
        average: decay of the running average of the weights, which is what is kept
            in the end; 0 keeps the last weights.
        seed: of initial weights, batches, sampled tokens and dropout.
        measure_every: steps between two points of the curve.
        save_every: steps between two checkpoints.

    Raises:
        ConfigError: a value is out of its range.
    """

    epochs: float = 3.0
    batch_size: int = 1024
    run_length: int = 32
    sequence_length: int = 1024
    learning_rate: float = 2e-3
    warmup: float = 0.04
    weight_decay: float = 0.01
    clip: float = 1.0
    hard_weight: float = 0.1
    head_decay: float = 0.8
    sampled_vocab: int = 2048
    dropout: float = 0.0
    average: float = 0.0
    seed: int = 0
    measure_every: int = 100
    save_every: int = 200

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "run_length",
            "sequence_length",
            "learning_rate",
            "clip",
            "head_decay",
            "sampled_vocab",
            "measure_every",
            "save_every",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0: {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay is 0 or more, not {self.weight_decay}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is 0 to {2**31 - 1}, not {self.seed}")
        for name in ("warmup", "hard_weight", "dropout", "average"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is 0 to 1, not {getattr(self, name)}")

    def rows_per_step(self, length: int) -> int:
        """Rows of `length` tokens that make up a batch.

        Raises:
            ConfigError: the batch is no multiple of the length.
        """
        if self.batch_size % length:
            raise ConfigError(
                f"batch_size {self.batch_size} must be a multiple of {length}, the "
                "tokens of a row"
            )
        return self.batch_size // length
