# SPDX-License-Identifier: Apache-2.0
"""Where the states come from, in which precision, and how the work is shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from vllm_medusa.errors import ConfigError, UnsupportedError
from vllm_medusa.train.backbone import Quantization


@dataclass(frozen=True)
class ComputeOptions:
    """How the arithmetic of a run is done; what is learnt is in `FitOptions`.

    Attributes:
        hidden_states: "cached": the states of vLLM's own run, kept on disk; "live":
            the base model runs along through transformers, frozen.
        quantization: of a live base, by bitsandbytes.
        mixed_precision: "bf16": products in bfloat16, weights of the heads in
            float32; "no": all in float32.
        gradient_accumulation_steps: parts in which a process does its share of a
            batch, one after the other.
        fsdp: shard weights, gradients and optimizer state over the processes, those
            of a live base too; otherwise each process holds all (DDP).

    Raises:
        ConfigError: a value is out of its range, or contradicts another one.
        UnsupportedError: a quantised base can't be sharded.
    """

    hidden_states: Literal["cached", "live"] = "cached"
    quantization: Quantization | None = None
    mixed_precision: Literal["bf16", "no"] = "bf16"
    gradient_accumulation_steps: int = 1
    fsdp: bool = False

    def __post_init__(self) -> None:
        if self.gradient_accumulation_steps < 1:
            raise ConfigError(
                "gradient_accumulation_steps must be at least 1: "
                f"{self.gradient_accumulation_steps}"
            )
        if self.quantization is None:
            return
        if not self.is_live:
            raise ConfigError(
                f"quantization {self.quantization} is of a live base, but the cached "
                "states are of vLLM's run: take hidden_states live, or give a model "
                "that vLLM loads quantised"
            )
        if self.fsdp:
            raise UnsupportedError(
                f"a base quantised to {self.quantization} is not sharded: leave fsdp "
                "out, or the quantization"
            )

    @property
    def is_live(self) -> bool:
        """Whether the base model runs along."""
        return self.hidden_states == "live"

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return torch.bfloat16 if self.mixed_precision == "bf16" else torch.float32
