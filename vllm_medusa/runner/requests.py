# SPDX-License-Identifier: Apache-2.0
"""Which requests may have a tree, and how many could not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vllm import SamplingParams


def exclusion_reason(params: SamplingParams | None) -> str | None:
    """Return why a request is decoded without a tree, or None if it may have one.

    These parameters change a row's logits by the text before the row, or report
    on it; on tree rows that text is the row's own path.
    """
    if params is None:
        return "no sampling parameters"
    reasons = (
        ("structured output", params.structured_outputs is not None),
        ("logprobs", params.logprobs is not None),
        ("presence_penalty", params.presence_penalty != 0.0),
        ("frequency_penalty", params.frequency_penalty != 0.0),
        ("repetition_penalty", params.repetition_penalty != 1.0),
        ("bad_words", bool(params.bad_words)),
        ("allowed_token_ids", params.allowed_token_ids is not None),
        ("logit_bias", bool(params.logit_bias)),
        ("min_tokens", params.min_tokens > 0),
        ("min_p", params.min_p > 0.0),
        ("logprob_token_ids", bool(getattr(params, "logprob_token_ids", None))),
        ("thinking_token_budget", getattr(params, "thinking_token_budget", None)),
    )
    return next((name for name, present in reasons if present), None)


@dataclass
class MedusaStats:
    """Counters of one worker since it started.

    `steps` engine steps with at least one tree, `trees` trees verified, `nodes`
    nodes verified, `accepted` nodes accepted, `moved` rows moved in the KV cache,
    `without_tree` requests decoded without a tree, by reason.
    """

    steps: int = 0
    trees: int = 0
    nodes: int = 0
    accepted: int = 0
    moved: int = 0
    without_tree: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Return the counters as JSON has them."""
        return {**vars(self), "without_tree": dict(self.without_tree)}


class TreeEligibility:
    """Remembers for every live request why it has no tree, if so."""

    def __init__(self, stats: MedusaStats, excluded: str | None = None) -> None:
        """`excluded` names an engine-wide reason that holds for every request."""
        self.stats = stats
        self.excluded = excluded
        self._reasons: dict[str, str | None] = {}

    def reason(self, req_id: str, params: SamplingParams | None) -> str | None:
        """Return `exclusion_reason` of a request; counts it the first time."""
        if req_id not in self._reasons:
            reason = self.excluded or exclusion_reason(params)
            self._reasons[req_id] = reason
            if reason is not None:
                self.stats.without_tree[reason] += 1
        return self._reasons[req_id]

    def forget(self, req_ids: set[str]) -> None:
        """Drop finished requests."""
        for req_id in req_ids:
            self._reasons.pop(req_id, None)
