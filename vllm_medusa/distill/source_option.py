# SPDX-License-Identifier: Apache-2.0
"""The option `--source KIND[:LOCATION][,key=value…]`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vllm_medusa.errors import ConfigError
from vllm_medusa.wording import show, suggest

SourceKind = Literal["prompts", "sharegpt", "hf", "templates", "self"]
KINDS: tuple[str, ...] = get_args(SourceKind)
WITHOUT_LOCATION = ("templates", "self")
FORM = "KIND[:LOCATION][,weight=W][,task=NAME]…"

_HF_KEYS = ("split", "config", "revision", "column")


@dataclass(frozen=True)
class SourceOption:
    """One source of prompts.

    Attributes:
        kind: how it is read.
        location: file, folder or Hugging Face id; empty for kinds that have none.
        weight: its share of the answers, relative to the other sources' weights.
        task: what its answers are counted as; the source's label by default.
        split: of a Hugging Face data set.
        config: of a Hugging Face data set that has several.
        revision: branch, tag or commit of a Hugging Face data set.
        column: columns that hold the prompt, joined by "+"; or one with the
            conversation. Empty: the first of the usual names that is there.
    """

    kind: SourceKind
    location: str = ""
    weight: float = 1.0
    task: str = ""
    split: str = "train"
    config: str = ""
    revision: str = ""
    column: str = ""

    @property
    def name(self) -> str:
        """The kind, and the last part of the location."""
        last = Path(self.location).name
        return f"{self.kind}:{last}" if last else self.kind

    @classmethod
    def parse(cls, text: str) -> SourceOption:
        """Read the option's text.

        Raises:
            ConfigError: the text does not have the form, or a key or value is
                impossible.
        """
        head, *pairs = text.split(",")
        kind, colon, location = head.partition(":")
        if kind not in KINDS:
            raise ConfigError(
                f"{show(kind)} in --source {show(text)} is no kind of source"
                f"{suggest(kind, KINDS)}: give one of {', '.join(KINDS)}"
            )
        if kind in WITHOUT_LOCATION and colon:
            raise ConfigError(f"--source {show(text)}: {kind} takes no location")
        if kind not in WITHOUT_LOCATION and not location:
            raise ConfigError(
                f"--source {show(text)} does not say where: give {kind}:LOCATION"
            )
        values = _values(text, kind, pairs)
        weight = _weight(text, values.pop("weight", "1"))
        # `kind` is one of the literals, and the keys are fields.
        return cls(kind, location, weight, **values)  # type: ignore[arg-type]


def _values(text: str, kind: str, pairs: list[str]) -> dict[str, str]:
    known = ["weight", "task", *(_HF_KEYS if kind == "hf" else ())]
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise ConfigError(
                f"{show(pair)} in --source {show(text)} must be key=value (a location "
                "can't hold a comma)"
            )
        if key not in known:
            raise ConfigError(
                f"{show(key)} in --source {show(text)} is no option of {kind}"
                f"{suggest(key, known)}: give {', '.join(known)}"
            )
        if key in values:
            raise ConfigError(f"{key} is given twice in --source {show(text)}")
        values[key] = value
    return values


def _weight(text: str, value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(
            f"the weight {show(value)} in --source {show(text)} must be a number "
            "above 0"
        )
    return weight
