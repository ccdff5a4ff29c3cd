# SPDX-License-Identifier: Apache-2.0
"""A figure over repeats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """A median with the smallest and the largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """ValueError if there are no values."""
        values = list(values)
        if not values:
            raise ValueError("no values to summarise")
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        """ "1.23 (1.20-1.26)"."""
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def spread_or_none(values: Iterable[float | None]) -> Spread | None:
    """The spread of the values that are there; None if there are none."""
    present = [value for value in values if value is not None]
    return Spread.of(present) if present else None
