# SPDX-License-Identifier: Apache-2.0
"""Which requests may have a tree, and how many could not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from vllm import SamplingParams

# What asks for more than a row's own logits: (reason, whether a request asks for it).
_REQUIREMENTS: tuple[tuple[str, Callable[[SamplingParams], bool]], ...] = (
    ("structured output", lambda params: params.structured_outputs is not None),
    ("presence_penalty", lambda params: params.presence_penalty != 0.0),
    ("frequency_penalty", lambda params: params.frequency_penalty != 0.0),
    ("repetition_penalty", lambda params: params.repetition_penalty != 1.0),
    ("bad_words", lambda params: bool(params.bad_words)),
    (
        "thinking_token_budget",
        lambda params: bool(getattr(params, "thinking_token_budget", None)),
    ),
    ("logprobs", lambda params: params.logprobs is not None),
    ("allowed_token_ids", lambda params: params.allowed_token_ids is not None),
    ("logit_bias", lambda params: bool(params.logit_bias)),
    ("min_tokens", lambda params: params.min_tokens > 0),
    ("min_p", lambda params: params.min_p > 0.0),
    (
        "logprob_token_ids",
        lambda params: bool(getattr(params, "logprob_token_ids", None)),
    ),
)
ON_TREE_ROWS_OF_V2 = frozenset(
    {
        "logprobs",
        "allowed_token_ids",
        "logit_bias",
        "min_tokens",
        "min_p",
        "logprob_token_ids",
    }
)
"""What Model Runner V2's sampler does right at every row, from the row's position."""


def exclusion_reason(
    params: SamplingParams | None, served: Collection[str] = ()
) -> str | None:
    """Return why a request is decoded without a tree, or None if it may have one.

    These parameters change a row's logits by the text before the row, or report
    on it; on tree rows that text is the row's own path. Those named in `served` are
    right on tree rows all the same.
    """
    if params is None:
        return "no sampling parameters"
    reasons = (
        name
        for name, is_asked_for in _REQUIREMENTS
        if name not in served and is_asked_for(params)
    )
    return next(reasons, None)


def custom_processors_reason(
    processors: Iterable[object], built_in: tuple[type, ...]
) -> str | None:
    """Return why no request can have a tree if the engine has logits processors of
    its user, which know requests but not rows; else None."""
    custom = [type(p).__name__ for p in processors if not isinstance(p, built_in)]
    return "logits processor " + ", ".join(sorted(custom)) if custom else None


@dataclass
class MedusaStats:
    """Counters of one worker since it started.

    `steps` engine steps with at least one tree, `trees` trees verified, `nodes`
    nodes verified, `accepted` nodes accepted, `moved` rows moved in the KV cache,
    `without_tree` requests decoded without a tree, by reason. Asynchronous scheduling
    runs one step more for a request that has ended; it counts too.
    """

    steps: int = 0
    trees: int = 0
    nodes: int = 0
    accepted: int = 0
    moved: int = 0
    without_tree: Counter[str] = field(default_factory=Counter)

    def count(self, num_trees: int, num_nodes: int, num_accepted: int) -> None:
        """Count a step with trees."""
        self.steps += 1
        self.trees += num_trees
        self.nodes += num_nodes
        self.accepted += num_accepted

    def reset(self) -> None:
        """Count from zero again."""
        vars(self).update(vars(MedusaStats()))

    def as_dict(self) -> dict[str, Any]:
        """Return the counters as JSON has them."""
        return {**vars(self), "without_tree": dict(self.without_tree)}


class TreeEligibility:
    """Remembers for every live request why it has no tree, if so."""

    def __init__(
        self,
        stats: MedusaStats,
        excluded: str | None = None,
        served: Collection[str] = (),
    ) -> None:
        """`excluded` names an engine-wide reason that holds for every request;
        `served` is that of `exclusion_reason`."""
        self.stats = stats
        self.excluded = excluded
        self.served = served
        self._reasons: dict[str, str | None] = {}

    def reason(self, req_id: str, params: SamplingParams | None) -> str | None:
        """Return `exclusion_reason` of a request; counts it the first time."""
        if req_id not in self._reasons:
            reason = self.excluded or exclusion_reason(params, self.served)
            self._reasons[req_id] = reason
            if reason is not None:
                self.stats.without_tree[reason] += 1
        return self._reasons[req_id]

    def forget(self, req_ids: set[str]) -> None:
        """Drop finished requests."""
        for req_id in req_ids:
            self._reasons.pop(req_id, None)
