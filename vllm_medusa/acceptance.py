# SPDX-License-Identifier: Apache-2.0
"""How drafts are accepted: the scheme and its settings, of an engine or a request."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_medusa.errors import ConfigError

if TYPE_CHECKING:
    from vllm import SamplingParams

Scheme = Literal["exact", "rejection", "typical"]
FirstToken = Literal["drawn", "greedy"]

Epsilon = Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)]
Delta = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]

POSSIBLE = {
    "acceptance": '"exact", "rejection" or "typical"',
    "epsilon": "a number between 0 and 1, both excluded",
    "delta": 'a number above 0, or "none" for the threshold epsilon alone',
    "first_token": '"drawn" or "greedy"',
}
"""What each setting may be, for messages."""

_PREFIX = "medusa_"
_REQUEST_KEYS = tuple(_PREFIX + name for name in POSSIBLE)


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


def request_acceptance(engine: Acceptance, params: SamplingParams | None) -> Acceptance:
    """Return how a request's drafts are accepted.

    `SamplingParams.extra_args` (`vllm_xargs` over HTTP) may hold "medusa_acceptance",
    "medusa_epsilon", "medusa_delta" and "medusa_first_token"; what it leaves out is
    as in `engine`. At temperature 0 every scheme is exact acceptance.

    Raises:
        ConfigError: a key that starts with "medusa_" is unknown, a value impossible, or
            rejection is asked of an engine that was not started with it.
    """
    asked = _asked(params.extra_args if params is not None else None)
    values = engine.model_dump() | asked
    try:
        acceptance = Acceptance(**values)
    except ValidationError as error:
        name = str(error.errors(include_url=False)[0]["loc"][0])
        name = "acceptance" if name == "scheme" else name
        value = values["scheme" if name == "acceptance" else name]
        raise ConfigError(
            f"{_PREFIX}{name} is {str(value)[:60]!r}: it must be {POSSIBLE[name]}"
        ) from None
    if acceptance.scheme == "rejection" != engine.scheme:
        raise ConfigError(
            "medusa_acceptance is 'rejection', but this engine keeps no draft "
            "probabilities: start it with acceptance=rejection"
        )
    if params is not None and params.temperature == 0.0:
        return EXACT
    return acceptance


def _asked(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of `Acceptance` that a request sets."""
    fields = {}
    for key, value in (extra_args or {}).items():
        if not isinstance(key, str) or not key.startswith(_PREFIX):
            continue
        if key not in _REQUEST_KEYS:
            close = get_close_matches(key, _REQUEST_KEYS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ConfigError(
                f"unknown key {key[:60]!r}{hint} in extra_args: Medusa knows "
                f"{', '.join(_REQUEST_KEYS)}"
            )
        name = key.removeprefix(_PREFIX)
        if name == "delta" and value in ("none", None):
            value = None
        elif name in ("epsilon", "delta") and type(value) not in (int, float):
            raise ConfigError(
                f"{key} is {str(value)[:60]!r}: it must be {POSSIBLE[name]}"
            )
        fields["scheme" if name == "acceptance" else name] = value
    return fields


def scheme_names() -> tuple[str, ...]:
    """Return the names of all schemes."""
    return get_args(Scheme)
