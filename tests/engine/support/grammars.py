# SPDX-License-Identifier: Apache-2.0
"""Requests with structured outputs, as short as their grammars allow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1 import structured_output as upstream

from tests.engine.support.engines import greedy

LENGTH = 26
"""Long enough for every text of `CASES` to come to its end."""
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,3}$"},
        "size": {"enum": [1, 23]},
    },
    "required": ["name", "size"],
    "additionalProperties": False,
}
REGEX = r"([a-z]{2,4}-[0-9]{1,2} ?){2,3}"
CHOICES = ["a red apple", "a red pear", "green plums", "blue"]
GRAMMAR = """
root ::= term (" + " term){2,3}
term ::= [a-f]{1,2} | "(" [a-f] ")"
"""
FREE = "[a-z0-9 .,]{20,}"
CONFIG = {
    "structured_outputs_config": {
        "backend": "xgrammar",
        "disable_any_whitespace": True,
    }
}


def constrained(max_tokens: int = LENGTH, **constraint: Any) -> SamplingParams:
    return greedy(
        max_tokens,
        ignore_eos=False,
        structured_outputs=StructuredOutputsParams(**constraint),
    )


CASES = {
    "json": constrained(json=SCHEMA),
    "regex": constrained(regex=REGEX),
    "choice": constrained(choice=CHOICES),
    "grammar": constrained(grammar=GRAMMAR),
}


def _fits_schema(text: str) -> bool:
    value = json.loads(text)
    name, size = value.pop("name"), value.pop("size")
    return bool(re.fullmatch("[a-z]{1,3}", name)) and size in (1, 23) and not value


IS_WHOLE: dict[str, Callable[[str], object]] = {
    "json": _fits_schema,
    "regex": re.compile(REGEX).fullmatch,
    "choice": CHOICES.__contains__,
    "grammar": re.compile(r"[a-f()]+( \+ [a-f()]+){2,3}").fullmatch,
}


def forbid_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where vLLM logs an error: it does for a draft that the grammar refuses."""

    def error(message: str, *args: object) -> None:
        raise AssertionError(message % args)

    monkeypatch.setattr(upstream.logger, "error", error)
