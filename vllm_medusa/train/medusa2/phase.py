# SPDX-License-Identifier: Apache-2.0
"""A part of a run with weights, rates and a length of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.medusa2.options import AdapterKind, JointOptions
from vllm_medusa.train.medusa2.schedule import HeadsWeight, constant, heads_weight


@dataclass(frozen=True)
class Phase:
    """Heads alone, or heads and backbone.

    Attributes:
        name: "heads" or "joint"; also of the checkpoint.
        epochs: passes over the answers.
        base: weight of the backbone's loss.
        heads_weight: λ0 by step.
        backbone_rate: peak learning rate of the backbone.
        heads_rate: peak learning rate of the heads.
    """

    name: str
    epochs: float
    base: float
    heads_weight: HeadsWeight
    backbone_rate: float
    heads_rate: float


def heads_phase(joint: JointOptions, fit: FitOptions) -> Phase:
    """Heads alone on the frozen original: Medusa-1."""
    return Phase(
        name="heads",
        epochs=joint.heads_epochs,
        base=0.0,
        heads_weight=partial(constant, 1.0),
        backbone_rate=0.0,
        heads_rate=fit.learning_rate,
    )


def joint_phase(joint: JointOptions, fit: FitOptions, adapters: AdapterKind) -> Phase:
    """Heads and backbone."""
    rate = joint.learning_rate_of(adapters)
    return Phase(
        name="joint",
        epochs=fit.epochs,
        base=1.0,
        heads_weight=heads_weight(joint.schedule, joint.heads_weight_or_default),
        backbone_rate=rate,
        heads_rate=rate * joint.head_multiple,
    )
