# SPDX-License-Identifier: Apache-2.0
"""Prompts from templates and topics that come with the package."""

from __future__ import annotations

import json
import random
from functools import cache
from importlib.resources import files


@cache
def _word_lists() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Templates and topics that come with the package."""
    source = files("vllm_medusa.distill") / "prompt_templates.json"
    data = json.loads(source.read_text(encoding="utf-8"))
    return tuple(data["templates"]), tuple(data["topics"])


def template_prompt(rng: random.Random) -> str:
    """Return a random template filled with random topics and small numbers."""
    templates, topics = _word_lists()
    template = rng.choice(templates)
    chosen = iter(rng.sample(topics, template.count("{topic}")))
    parts = template.split("{topic}")
    text = parts[0] + "".join(next(chosen) + part for part in parts[1:])
    while "{number}" in text:
        text = text.replace("{number}", str(rng.randint(2, 60)), 1)
    return text
