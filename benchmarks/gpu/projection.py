# SPDX-License-Identifier: Apache-2.0
"""The speed-up that follows from a measured overhead and published tokens per step.

Random heads guess nothing, so for the shapes of Vicuna only the cost of a step can be
measured. What a step brings is known from elsewhere: trained heads of the same
architecture over trees of 64 rows. Their quotient is a projection, never a measurement.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

LABEL = "projected from published tokens per step"
ROWS = 64
"""Rows of the trees behind the published figures, the root included."""


@dataclass(frozen=True)
class Published:
    """Tokens per step of published heads on MT-bench, batch 1, and where it stands."""

    training: str
    tokens_per_step: float
    source: str


_PAPER = "arXiv 2401.10774 v3, Table 1 (acceleration rate)"
_REPOSITORY = (
    "FasterDecoding/Medusa, answers in llm_judge (Vicuna v1.3, temperature 0, tree "
    "mc_sim_7b_63)"
)
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "vicuna-7b": (
        Published("Medusa-1", 2.57, _REPOSITORY),
        Published("Medusa-2", 3.47, _PAPER),
    ),
    "vicuna-13b": (
        Published("Medusa-1", 2.64, _REPOSITORY),
        Published("Medusa-2", 3.51, _PAPER),
    ),
}
"""By model; smaller trees have no published figure."""


def project(model: str, rows: int, overhead: float) -> list[dict[str, Any]]:
    """Published tokens per step ÷ measured overhead; empty where nothing is published.

    `overhead` is the time of a step with `rows` rows over a plain step. ValueError if
    it is not positive.
    """
    if overhead <= 0:
        raise ValueError(f"an overhead is positive, not {overhead}")
    if rows != ROWS:
        return []
    return [
        {
            "label": LABEL,
            **asdict(published),
            "overhead": overhead,
            "speedup": published.tokens_per_step / overhead,
        }
        for published in PUBLISHED.get(model, ())
    ]
