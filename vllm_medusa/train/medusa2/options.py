# SPDX-License-Identifier: Apache-2.0
"""All options of a Medusa-2 run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vllm_medusa.errors import ConfigError, refuse_first
from vllm_medusa.train.compute_options import ComputeOptions
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.medusa2.quality import Bounds
from vllm_medusa.train.options import HeadsOptions

ScheduleKind = Literal["two-stage", "one-stage"]
AdapterKind = Literal["lora", "full"]
BaseLoss = Literal["cross-entropy", "kl"]
SavedDtype = Literal["auto", "bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class AdapterOptions:
    """What of the backbone is trained.

    Attributes:
        kind: "lora": low-rank adapters of all linear layers (peft); "full": all
            weights.
        rank: of the adapters.
        alpha: their product is scaled by alpha / rank.
        dropout: on the adapters' input.
        lm_head: whether the LM head has an adapter too; it has no dropout.
        untie: give a model whose LM head is its token embedding an LM head of its own.

    Raises:
        ConfigError: a value is out of its range.
    """

    kind: AdapterKind = "lora"
    rank: int = 32
    alpha: int = 16
    dropout: float = 0.05
    lm_head: bool = False
    untie: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora_rank must be at least 1: {self.rank}")
        if self.alpha < 1:
            raise ConfigError(f"lora_alpha must be at least 1: {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora_dropout is 0 to below 1, not {self.dropout}")
        if self.lm_head and self.kind == "full":
            raise ConfigError(
                "with full weights the LM head is trained anyway: leave "
                "lora_lm_head out"
            )


@dataclass(frozen=True)
class JointOptions:
    """How heads and backbone are trained together.

    Attributes:
        schedule: "two-stage": heads alone first, then both with a constant weight;
            "one-stage": both from the start, the heads' weight rising like a sine.
        base_loss: of the backbone, "kl": to the original's distribution;
            "cross-entropy": with the answers' tokens.
        heads_weight: λ0, weight of the heads' loss beside the backbone's; None: 0.2
            two-stage, 0.01 one-stage (the paper's appendix B).
        heads_epochs: passes over the answers with heads alone.
        backbone_learning_rate: peak rate of the backbone; None: with adapters 1e-4 for
            kl and 5e-4 for cross-entropy (the paper's recipes), 2e-5 with full weights.
        head_multiple: rate of the heads beside the backbone, as its multiple.
        checkpointing: compute activations again in the backward pass.

    Raises:
        ConfigError: a value is out of its range.
    """

    schedule: ScheduleKind = "two-stage"
    base_loss: BaseLoss = "kl"
    heads_weight: float | None = None
    heads_epochs: float = 1.0
    backbone_learning_rate: float | None = None
    head_multiple: float = 4.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("heads_epochs", "backbone_learning_rate", "head_multiple"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be above 0: {value}")
        weight = self.heads_weight
        if weight is not None and not 0 <= weight < math.inf:
            raise ConfigError(f"heads_weight must not be below 0: {weight}")

    @property
    def heads_weight_or_default(self) -> float:
        """λ0."""
        if self.heads_weight is not None:
            return self.heads_weight
        return 0.2 if self.schedule == "two-stage" else 0.01

    def learning_rate_of(self, adapters: AdapterKind) -> float:
        """Peak rate of the backbone."""
        if self.backbone_learning_rate is not None:
            return self.backbone_learning_rate
        if adapters == "full":
            return 2e-5
        return 1e-4 if self.base_loss == "kl" else 5e-4


@dataclass(frozen=True)
class Medusa2Options:
    """One Medusa-2 run.

    Attributes:
        model: folder or Hugging Face id of the original model.
        output: folder that gets `backbone` and `heads`.
        work: folder of checkpoints and of the report; kept.
        answers: files of answers, or folders of shards.
        base_name: what the files call the original; None: `model`.
        heads_folder: heads to begin with; None: fresh ones, as `heads` says.
        heads: architecture of fresh heads.
        adapters: what of the backbone is trained.
        joint: how both are trained together.
        fit: how, as in stage medusa1; its learning rate is that of heads alone, its
            epochs those of both. Sampled vocabulary and average are not used.
        compute: how the arithmetic is done; always live.
        bounds: how far the backbone may move from the original.
        evaluation_prompts: file of prompts whose answers are not used.
        held_out: share of the prompts whose answers are not trained on.
        tree_nodes: nodes of the tree written beside the heads.
        saved_dtype: of the merged backbone; "auto": the original's.
        export_last_good: don't train; write what the last checkpoint holds.

    Raises:
        ConfigError: a value is out of its range, or options contradict each other.
        UnsupportedError: an option of stage medusa1 that has no meaning here.
    """

    model: str
    output: Path
    work: Path
    answers: tuple[Path, ...]
    base_name: str | None = None
    heads_folder: Path | None = None
    heads: HeadsOptions = field(default_factory=HeadsOptions)
    adapters: AdapterOptions = field(default_factory=AdapterOptions)
    joint: JointOptions = field(default_factory=JointOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    bounds: Bounds = field(default_factory=Bounds)
    evaluation_prompts: Path | None = None
    held_out: float = 0.02
    tree_nodes: int = 8
    saved_dtype: SavedDtype = "auto"
    export_last_good: bool = False

    def __post_init__(self) -> None:
        if not self.answers:
            raise ConfigError(
                "Medusa-2 trains on the model's own answers: make them with "
                "'vllm-medusa distill' and name them with --answers"
            )
        if not 0 < self.held_out < 1:
            raise ConfigError(
                f"held_out is a share between 0 and 1, not {self.held_out}"
            )
        if self.tree_nodes < 1:
            raise ConfigError(f"tree_nodes must be at least 1: {self.tree_nodes}")
        compute = self.compute
        refuse_first(
            [
                (
                    compute.quantization is not None,
                    "a quantised base that is trained: leave --quantization out, the "
                    "adapters are merged into whole weights",
                ),
                (compute.fsdp, "sharding in stage medusa2: leave --fsdp out"),
                (
                    self.fit.average > 0,
                    "an average of the weights in stage medusa2: leave --average out",
                ),
            ]
        )
        self.rows_per_step  # noqa: B018 (it refuses what can't be)
        if self.work.resolve().is_relative_to(self.output.resolve()):
            raise ConfigError(
                f"work {self.work} must not lie in output {self.output}: a run "
                "replaces folders there"
            )

    @property
    def rows_per_step(self) -> int:
        """Packed rows of a step, of all processes together."""
        return self.fit.rows_per_step(self.fit.sequence_length)
