# SPDX-License-Identifier: Apache-2.0
"""What a request asks of Medusa in `SamplingParams.extra_args`, `vllm_xargs` over HTTP.

Keys that start with "medusa_" are ours; those of others are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vllm_medusa.acceptance import EXACT, POSSIBLE, Acceptance
from vllm_medusa.errors import ConfigError
from vllm_medusa.wording import show, suggest

if TYPE_CHECKING:
    from vllm import SamplingParams

_PREFIX = "medusa_"
_NODES = "num_speculative_tokens"
_POSSIBLE = {**POSSIBLE, _NODES: "a whole number, 0 for no tree at all"}
KEYS = tuple(_PREFIX + name for name in _POSSIBLE)
NODES_KEY = _PREFIX + _NODES
"""Cuts a request's tree to its first (best) so many nodes."""


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Options of one request.

    Attributes:
        acceptance: how its drafts are accepted.
        max_nodes: its tree has only the first (best) so many nodes, 0: none; None: as
            many as the engine's.
    """

    acceptance: Acceptance = EXACT
    max_nodes: int | None = None

    @staticmethod
    def of(params: SamplingParams, engine: Acceptance) -> RequestOptions:
        """Read a request's options; what it leaves out is as in `engine`.

        At temperature 0 every scheme is exact acceptance.

        Raises:
            ConfigError: a key that starts with "medusa_" is unknown, a value is
                impossible, or rejection is asked of an engine that was not started
                with it.
        """
        asked = _asked(params.extra_args)
        nodes = asked.pop(_NODES, None)
        if nodes is not None and (type(nodes) is not int or nodes < 0):
            raise _impossible(_NODES, nodes)
        acceptance = _acceptance(engine, asked)
        if params.temperature == 0.0:
            acceptance = EXACT
        return RequestOptions(acceptance, nodes)


def max_nodes(params: SamplingParams | None) -> int | None:
    """Return `RequestOptions.max_nodes`, of a request whose options were checked."""
    if params is None or not params.extra_args:
        return None
    nodes = params.extra_args.get(NODES_KEY)
    return nodes if type(nodes) is int and nodes >= 0 else None


def _acceptance(engine: Acceptance, asked: Mapping[str, Any]) -> Acceptance:
    fields = {
        "scheme" if name == "acceptance" else name: value
        for name, value in asked.items()
    }
    try:
        acceptance = Acceptance(**engine.model_dump() | fields)
    except ValidationError as error:
        field = str(error.errors(include_url=False)[0]["loc"][0])
        name = "acceptance" if field == "scheme" else field
        raise _impossible(name, fields[field]) from None
    if acceptance.scheme == "rejection" != engine.scheme:
        raise ConfigError(
            "medusa_acceptance is 'rejection', but this engine keeps no draft "
            "probabilities: start it with acceptance=rejection"
        )
    return acceptance


def _asked(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return our keys without their prefix."""
    if extra_args is None:
        return {}
    if not isinstance(extra_args, Mapping):
        raise ConfigError(f"extra_args is {show(extra_args)}: it must be a dict")
    asked = {}
    for key, value in extra_args.items():
        if not isinstance(key, str) or not key.startswith(_PREFIX):
            continue
        if key not in KEYS:
            raise ConfigError(
                f"unknown key {show(key)}{suggest(key, KEYS)} in extra_args: Medusa "
                f"knows {', '.join(KEYS)}"
            )
        name = key.removeprefix(_PREFIX)
        if name == "delta" and (value is None or _is_text(value, "none")):
            value = None
        elif name in ("epsilon", "delta") and type(value) not in (int, float):
            raise _impossible(name, value)
        asked[name] = value
    return asked


def _is_text(value: object, text: str) -> bool:
    # Other types may compare as they like: an array gives an array.
    return isinstance(value, str) and value == text


def _impossible(name: str, value: Any) -> ConfigError:
    text = value if isinstance(value, str) else show(value)
    return ConfigError(f"{_PREFIX}{name} is {show(text)}: it must be {_POSSIBLE[name]}")
