# SPDX-License-Identifier: Apache-2.0
"""Options that the stages of `vllm-medusa train` share, from their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from vllm_medusa.train.compute_options import ComputeOptions
    from vllm_medusa.train.fit_options import FitOptions
    from vllm_medusa.train.options import HeadsOptions


def base_of(model: str) -> tuple[str, str | None]:
    """Where the base model is, and what the files call it if not that."""
    if model != "default":
        return model, None
    from vllm_medusa import default_model

    return str(default_model.model_path()), default_model.HUB_ID


def work_of(args: argparse.Namespace) -> Path:
    """The folder that a run goes on from."""
    work: Path | None = args.work
    return work or args.output.with_name(f"{args.output.name}.work")


def heads_options(args: argparse.Namespace) -> HeadsOptions:
    """The form of the heads.

    Raises:
        ConfigError: a value is out of its range.
    """
    from vllm_medusa.train.options import HeadsOptions

    return HeadsOptions(
        num_heads=args.num_heads,
        num_layers=args.num_layers,
        block=args.block,
        intermediate_size=args.intermediate_size,
        projection=args.projection,
        rank=args.rank,
        draft_vocab=args.draft_vocab,
    )


def fit_options(args: argparse.Namespace, **of_stage: Any) -> FitOptions:
    """How weights are fitted; `of_stage` are fields that only one stage sets.

    Raises:
        ConfigError: a value is out of its range.
    """
    from vllm_medusa.train.fit_options import FitOptions

    return FitOptions(
        epochs=args.epochs,
        batch_size=args.batch_size,
        sequence_length=args.sequence_length,
        learning_rate=args.learning_rate,
        warmup=args.warmup,
        weight_decay=args.weight_decay,
        dropout=args.dropout,
        hard_weight=args.hard_weight,
        head_decay=args.head_decay,
        sampled_vocab=args.sampled_vocab,
        average=args.average,
        seed=args.seed,
        **of_stage,
    )


def compute_options(
    args: argparse.Namespace, hidden_states: Literal["cached", "live"]
) -> ComputeOptions:
    """How the arithmetic is done.

    Raises:
        ConfigError: a value is out of its range, or contradicts another one.
        UnsupportedError: a quantised base can't be sharded.
    """
    from vllm_medusa.train.compute_options import ComputeOptions

    return ComputeOptions(
        hidden_states=hidden_states,
        quantization=args.quantization,
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        fsdp=args.fsdp,
    )
