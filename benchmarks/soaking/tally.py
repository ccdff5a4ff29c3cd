# SPDX-License-Identifier: Apache-2.0
"""What a soak test has counted, and what was wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks.soaking.answers import Answer, fault
from benchmarks.soaking.arrivals import Arrival

KEPT_MISMATCHES = 20
"""More are counted, but not written down."""


class Tally:
    """Checks every answer as it ends; keeps counts, and of faults all there is to know.

    Attributes:
        requests, cancelled, compared, tokens, mismatches: numbers of requests ended,
            of those given up by the client, of those compared with plain vLLM, of
            tokens received, and of answers that were wrong.
        kinds: requests by kind.
        faults: for each of the first mismatches the request, both answers and what
            differs.
    """

    def __init__(self, plain: Mapping[str, Answer]) -> None:
        """`plain`: what plain vLLM answered, by the name of the ask."""
        self._plain = plain
        self.requests = self.cancelled = self.compared = self.tokens = 0
        self.mismatches = 0
        self.kinds: Counter[str] = Counter()
        self.faults: list[dict[str, Any]] = []

    def end(self, arrival: Arrival, answer: Answer, is_cancelled: bool) -> None:
        """Take up a request that has ended."""
        ask = arrival.ask
        self.requests += 1
        self.cancelled += is_cancelled
        self.tokens += answer.num_tokens
        self.kinds[ask.name.split("-", 1)[1]] += 1
        plain = self._plain[ask.name] if ask.is_exact else None
        self.compared += plain is not None
        reason = fault(ask, answer, plain, is_cancelled)
        if reason is None:
            return
        self.mismatches += 1
        record = {
            "reason": reason,
            "request": arrival.number,
            "priority": arrival.priority,
            "cancelled_after": arrival.cancel_after if is_cancelled else None,
            "ask": ask.as_dict(),
            "answer": answer.as_dict(),
            "plain": plain.as_dict() if plain is not None else None,
        }
        if len(self.faults) < KEPT_MISMATCHES:
            self.faults.append(record)
            print(f"mismatch: {json.dumps(record)}", flush=True)

    def as_dict(self) -> dict[str, Any]:
        """The counts, for JSON."""
        return {
            "requests": self.requests,
            "cancelled": self.cancelled,
            "compared": self.compared,
            "tokens": self.tokens,
            "mismatches": self.mismatches,
            "kinds": dict(sorted(self.kinds.items())),
        }
