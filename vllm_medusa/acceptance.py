# SPDX-License-Identifier: Apache-2.0
"""How drafts are accepted: the scheme and its settings, of an engine or a request."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Scheme = Literal["exact", "rejection", "typical"]
FirstToken = Literal["drawn", "greedy"]

Epsilon = Annotated[float, Field(strict=True, gt=0.0, lt=1.0, allow_inf_nan=False)]
Delta = Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)]

POSSIBLE = {
    "acceptance": '"exact", "rejection" or "typical"',
    "epsilon": "a number between 0 and 1, both excluded",
    "delta": 'a number above 0, or "none" for the threshold epsilon alone',
    "first_token": '"drawn" or "greedy"',
}
"""What each setting may be, for messages."""


class Acceptance(BaseModel):
    """A scheme and its settings.

    Attributes:
        scheme: "exact" keeps every token that plain decoding would give; "rejection"
            keeps the distribution (recursive rejection sampling over candidates
            drawn from the heads, arXiv 2402.14160); "typical" is faster and lossy
            (arXiv 2401.10774, section 2.3.1).
        epsilon: of typical acceptance: no candidate above this probability is
            refused.
        delta: of typical acceptance: the factor of exp(-entropy); None leaves
            the threshold epsilon alone.
        first_token: of typical acceptance: whether the token behind the accepted
            ones, with which the next step starts, is drawn from the distribution or
            its most probable one, as in the paper.
    """

    model_config = ConfigDict(frozen=True)

    scheme: Scheme = "exact"
    epsilon: Epsilon = 0.09
    delta: Delta | None = 0.3
    first_token: FirstToken = "drawn"


EXACT = Acceptance()


def scheme_names() -> tuple[str, ...]:
    """Return the names of all schemes."""
    return get_args(Scheme)
