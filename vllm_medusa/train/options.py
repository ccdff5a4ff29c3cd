# SPDX-License-Identifier: Apache-2.0
"""All options of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vllm_medusa.errors import ConfigError
from vllm_medusa.heads.spec import MAX_HEADS, BlockKind, ProjectionKind
from vllm_medusa.train.compute_options import ComputeOptions
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.generate import GenerateOptions


@dataclass(frozen=True)
class HeadsOptions:
    """The heads to train; the sizes of the base model are filled in later.

    Attributes:
        num_heads: heads, each one token further ahead.
        num_layers: blocks per head.
        block: kind of block (see `HeadsSpec`).
        intermediate_size: inner width of "mlp" blocks.
        projection: kind of projection (see `HeadsSpec`).
        rank: of a "low_rank" projection.
        draft_vocab: most frequent answer tokens that the heads can guess.

    Raises:
        ConfigError: a number is out of its range.
    """

    num_heads: int = 4
    num_layers: int = 1
    block: BlockKind = "mlp"
    intermediate_size: int = 1152
    projection: ProjectionKind = "single"
    rank: int = 128
    draft_vocab: int = 4096

    def __post_init__(self) -> None:
        if not 1 <= self.num_heads <= MAX_HEADS:
            raise ConfigError(f"num_heads is 1 to {MAX_HEADS}, not {self.num_heads}")
        for name in ("num_layers", "intermediate_size", "rank", "draft_vocab"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1: {getattr(self, name)}")


@dataclass(frozen=True)
class TrainOptions:
    """One training run.

    Attributes:
        model: folder or Hugging Face id of the base model.
        output: folder the heads are written to.
        work: folder of answers, hidden states and checkpoints; kept.
        base_name: what the files call the base model; None: `model`.
        prompts: files of prompts; without any, prompts are written by the model
            and by templates.
        answers: files of answers made earlier, to be included; with them and without
            prompts none are generated.
        evaluation_prompts: file of prompts to measure on, answered greedily in
            float32 and never trained on.
        held_out: share of the prompts whose answers are not trained on.
        tree_nodes: nodes of the tree written beside the heads.
        generate: how answers are made.
        heads: what is trained.
        fit: how it is trained.
        compute: how the arithmetic is done.

    Raises:
        ConfigError: a value is out of its range.
    """

    model: str
    output: Path
    work: Path
    base_name: str | None = None
    prompts: tuple[Path, ...] = ()
    answers: tuple[Path, ...] = ()
    evaluation_prompts: Path | None = None
    held_out: float = 0.02
    tree_nodes: int = 8
    generate: GenerateOptions = field(default_factory=GenerateOptions)
    heads: HeadsOptions = field(default_factory=HeadsOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ConfigError(
                f"held_out is a share between 0 and 1, not {self.held_out}"
            )
        if self.tree_nodes < 1:
            raise ConfigError(f"tree_nodes must be at least 1: {self.tree_nodes}")
        self.rows_per_batch  # noqa: B018 (it refuses what can't be)

    @property
    def rows_per_batch(self) -> int:
        """Runs of answer tokens, or packed rows, that make up a batch."""
        fit = self.fit
        live = self.compute.is_live
        return fit.rows_per_step(fit.sequence_length if live else fit.run_length)
