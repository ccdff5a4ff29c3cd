# SPDX-License-Identifier: Apache-2.0
"""Requests that must get a 400, and what its message must say."""

from __future__ import annotations

from typing import Any

HUGE = 10**30
MALFORMED_OPTIONS: dict[str, tuple[Any, str]] = {
    # name: (vllm_xargs, words of the message)
    "a number as the scheme": ({"medusa_acceptance": 5}, "medusa_acceptance is '5'"),
    "an unknown scheme": (
        {"medusa_acceptance": "hopeful"},
        'it must be "exact", "rejection" or "typical"',
    ),
    "a list as the scheme": ({"medusa_acceptance": ["typical"]}, "medusa_acceptance"),
    "rejection": (
        {"medusa_acceptance": "rejection"},
        "start it with acceptance=rejection",
    ),
    "epsilon 0": ({"medusa_epsilon": 0}, "a number between 0 and 1"),
    "epsilon 1": ({"medusa_epsilon": 1}, "a number between 0 and 1"),
    "epsilon below 0": ({"medusa_epsilon": -0.5}, "a number between 0 and 1"),
    "epsilon in words": ({"medusa_epsilon": "0.1"}, "a number between 0 and 1"),
    "epsilon not a number": (
        {"medusa_epsilon": float("nan")},
        "a number between 0 and 1",
    ),
    "epsilon infinite": ({"medusa_epsilon": float("inf")}, "a number between 0 and 1"),
    "epsilon huge": ({"medusa_epsilon": HUGE}, "extra_args integers"),
    "epsilon a list": ({"medusa_epsilon": [0.1, 0.2]}, "a number between 0 and 1"),
    "delta 0": ({"medusa_delta": 0}, "a number above 0"),
    "delta below 0": ({"medusa_delta": -1.0}, "a number above 0"),
    "delta not a number": ({"medusa_delta": float("nan")}, "a number above 0"),
    "delta infinite": ({"medusa_delta": float("inf")}, "a number above 0"),
    "delta huge": ({"medusa_delta": HUGE}, "extra_args integers"),
    "delta in words": ({"medusa_delta": "much"}, "a number above 0"),
    "first token": ({"medusa_first_token": "best"}, '"drawn" or "greedy"'),
    "nodes below 0": ({"medusa_num_speculative_tokens": -1}, "a whole number"),
    "half a node": ({"medusa_num_speculative_tokens": 1.5}, "a whole number"),
    "nodes in words": ({"medusa_num_speculative_tokens": "3"}, "a whole number"),
    "nodes not a number": (
        {"medusa_num_speculative_tokens": float("nan")},
        "a whole number",
    ),
    "nodes huge": ({"medusa_num_speculative_tokens": HUGE}, "extra_args integers"),
    "a slip of the pen": (
        {"medusa_epsilom": 0.1},
        "did you mean 'medusa_epsilon'",
    ),
    "an unknown key": ({"medusa_tree": "chain"}, "unknown key 'medusa_tree'"),
    "a long key": ({"medusa_" + "x" * 50_000: 1}, "unknown key"),
    "a long value": ({"medusa_acceptance": "y" * 50_000}, "medusa_acceptance is"),
    # what vLLM's own check of vllm_xargs refuses
    "a nested object": ({"medusa_epsilon": {"of": 1}}, "vllm_xargs"),
    "null": ({"medusa_delta": None}, "vllm_xargs"),
    "no object at all": ("medusa_acceptance=typical", "vllm_xargs"),
    "a list of options": ([{"medusa_epsilon": 0.1}], "vllm_xargs"),
}

LIKE_PLAIN: dict[str, dict[str, Any]] = {
    "max_tokens below 0": {"max_tokens": -5},
    "max_tokens beyond the model": {"max_tokens": 10**9},
    "temperature below 0": {"temperature": -1.0},
    "temperature not a number": {"temperature": float("nan")},
    "temperature in words": {"temperature": "hot"},
    "top_p above 1": {"top_p": 1.5},
    "n is 0": {"n": 0},
    "seed beyond 64 bits": {"seed": 2**70},
    "logit bias of no token": {"logit_bias": {"99999": 1.0}},
    "no regex": {"structured_outputs": {"regex": "("}},
    "an empty stop string": {"stop": [""]},
    "min_p above 1": {"min_p": 2.0},
    "unknown model": {"model": "another"},
    "no allowed tokens": {"allowed_token_ids": []},
    "a prompt that is too long": {"prompt": [5] * 5000},
    "no such token": {"prompt": [99999]},
}
"""Fields of a completion that vLLM itself refuses; Medusa changes nothing about it."""
