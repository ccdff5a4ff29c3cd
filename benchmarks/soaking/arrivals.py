# SPDX-License-Identifier: Apache-2.0
"""When requests come and which of them are given up, drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.soaking.asks import Ask

PRIORITIES = 3


@dataclass(frozen=True)
class Traffic:
    """How requests arrive.

    Attributes:
        rate: requests per unit of time, bursts included.
        burst_share: share of the arrivals that bring a burst.
        burst: most requests of a burst; it has at least two.
        cancelled_share: share of the requests that are given up.
    """

    rate: float
    burst_share: float = 0.1
    burst: int = 10
    cancelled_share: float = 0.2


@dataclass(frozen=True)
class Arrival:
    """One request on its way.

    `gap` is the time since the arrival before, `cancel_after` the number of tokens
    after which its client gives up: 0 means before the first token, None never.
    """

    number: int
    ask: Ask
    gap: float
    priority: int
    cancel_after: int | None


def arrivals(asks: Sequence[Ask], traffic: Traffic, seed: int) -> Iterator[Arrival]:
    """Arrivals without end: a Poisson process, some of whose events are bursts."""
    rng = Random(f"arrivals-{seed}")
    mean_burst = 1 + traffic.burst_share * (traffic.burst + 2) / 2 - traffic.burst_share
    number = 0
    while True:
        gap = rng.expovariate(traffic.rate / mean_burst)
        is_burst = rng.random() < traffic.burst_share
        for place in range(rng.randint(2, traffic.burst) if is_burst else 1):
            ask = rng.choice(asks)
            cancel_after = None
            if rng.random() < traffic.cancelled_share:
                cancel_after = rng.randrange(ask.params["max_tokens"])
            priority = rng.randrange(PRIORITIES)
            yield Arrival(number, ask, 0.0 if place else gap, priority, cancel_after)
            number += 1
