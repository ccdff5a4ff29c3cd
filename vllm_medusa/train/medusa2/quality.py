# SPDX-License-Identifier: Apache-2.0
"""How far a backbone has moved from the original, and how far it may."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_medusa.errors import ConfigError, QualityError


@dataclass(frozen=True)
class Quality:
    """A backbone on held-out answers of the original model.

    Attributes:
        perplexity: exp of the mean negative log-probability of the answers' tokens.
        agreement: share of positions where its most probable token is the original's.
        positions: answer tokens looked at.
    """

    perplexity: float
    agreement: float
    positions: int


@dataclass(frozen=True)
class Bounds:
    """How far the backbone may move; None (or infinity, or 0) for no bound.

    Attributes:
        max_perplexity_increase: of the perplexity on held-out answers, relative to
            the original's: 0.02 allows 2 %.
        min_agreement: smallest share of positions with the original's best token.

    Raises:
        ConfigError: a bound is out of its range.
    """

    max_perplexity_increase: float | None = 0.02
    min_agreement: float | None = 0.9

    def __post_init__(self) -> None:
        rise, share = self.max_perplexity_increase, self.min_agreement
        if rise is not None and not rise >= 0:
            raise ConfigError(f"max_perplexity_increase must not be below 0: {rise}")
        if share is not None and not 0 <= share <= 1:
            raise ConfigError(f"min_agreement is 0 to 1, not {share}")

    def crossed(self, before: Quality, now: Quality) -> str | None:
        """What is wrong with `now`, or None if it is within the bounds."""
        limit = self.max_perplexity_increase
        if limit is not None:
            rise = now.perplexity / before.perplexity - 1
            # Also true of NaN, which compares with nothing.
            if not rise <= limit:
                return (
                    f"perplexity rose from {before.perplexity:.4f} to "
                    f"{now.perplexity:.4f} ({rise:+.2%}), allowed are {limit:+.2%}"
                )
        if self.min_agreement is not None and not now.agreement >= self.min_agreement:
            return (
                f"the most probable token is the original's at {now.agreement:.2%} of "
                f"{now.positions} positions, at least {self.min_agreement:.2%} are "
                "asked for"
            )
        return None


@dataclass
class QualityReport:
    """What the guard has seen; quality.json.

    Attributes:
        bounds: what is allowed.
        before: the original model.
        history: {"step", "perplexity", "agreement"} at intervals.
        after: the merged backbone as it was written, None until then.
        stopped: why the run stopped, None if it did not.
    """

    bounds: Bounds
    before: Quality
    history: list[dict[str, Any]] = field(default_factory=list)
    after: Quality | None = None
    stopped: str | None = None

    def add(self, step: int, now: Quality) -> None:
        """Note a measurement and hold it against the bounds.

        Raises:
            QualityError: a bound is crossed.
        """
        point = {"step": step} | {
            "perplexity": now.perplexity,
            "agreement": now.agreement,
        }
        self.history.append(point)
        self._hold(now, f"after step {step}")

    def finish(self, merged: Quality) -> None:
        """Note the merged backbone's quality and hold it against the bounds.

        Raises:
            QualityError: a bound is crossed.
        """
        self.after = merged
        self._hold(merged, "after merging")

    def _hold(self, now: Quality, when: str) -> None:
        reason = self.bounds.crossed(self.before, now)
        self.stopped = None if reason is None else f"{when}: {reason}"
        if self.stopped is not None:
            raise QualityError(
                f"the backbone has moved too far from the original {self.stopped}"
            )

    def to_json(self) -> dict[str, Any]:
        """As an object for a JSON file, with None for infinity and NaN."""
        finite: dict[str, Any] = _finite(asdict(self))
        return finite


def _finite(value: Any) -> Any:
    """The value with None for each number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
