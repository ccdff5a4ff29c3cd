# SPDX-License-Identifier: Apache-2.0
"""From the timings of single visits to the figures of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from vllm_medusa.calibration.spread import Spread

ADDED = ("propose", "verify", "move")
"""Parts of a step that plain vLLM does not have; drawing ("draw") it has as well."""
MAX_BUFFER_BYTES = 64 << 20


def compare(
    plain: Sequence[Mapping[str, Any]], tree: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Step seconds of both and the overhead, each with its spread over the visits.

    Visits with the same index were neighbours in time, and only those are divided.
    "tokens_per_step" is what came out here, with whatever heads there were.
    """
    pairs = zip(plain, tree, strict=True)
    return {
        "plain_seconds": asdict(Spread.of(visit["seconds"] for visit in plain)),
        "seconds": asdict(Spread.of(visit["seconds"] for visit in tree)),
        "overhead": asdict(Spread.of(t["seconds"] / p["seconds"] for p, t in pairs)),
        "tokens_per_step": median(visit["tokens"] for visit in tree),
    }


def speed_up(
    plain: Sequence[Mapping[str, Any]], tree: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Tokens/s of both over the same questions, and their ratio; see `compare`."""
    pairs = list(zip(plain, tree, strict=True))
    return {
        "plain_tokens_per_second": asdict(
            Spread.of(run["tokens_per_second"] for run in plain)
        ),
        "tokens_per_second": asdict(
            Spread.of(run["tokens_per_second"] for run in tree)
        ),
        "speedup": asdict(
            Spread.of(t["tokens_per_second"] / p["tokens_per_second"] for p, t in pairs)
        ),
        "tokens_per_step": median(run["tokens_per_step"] for run in tree),
        "other_texts": max(
            sum(a != b for a, b in zip(t["token_ids"], p["token_ids"], strict=True))
            for p, t in pairs
        ),
    }


def shares(visit: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds per step by part, and the share of what Medusa adds, of a timed visit.

    ValueError if the parts were not timed.
    """
    if not visit["parts"]:
        raise ValueError("the worker timed no parts: VLLM_MEDUSA_TIMING must be 1")
    parts = {
        name: part["seconds"] / part["calls"] for name, part in visit["parts"].items()
    }
    added = sum(parts.get(name, 0.0) for name in ADDED)
    return {
        "step_seconds": visit["seconds"],
        "part_seconds": parts,
        "added_seconds": added,
        "added_share": added / visit["seconds"],
    }


def check_memory(memory: Mapping[str, int]) -> str | None:
    """What is wrong with Medusa's memory, if anything.

    `memory` has "heads" and "buffers" in bytes. Together they may be at most what the
    heads weigh plus `MAX_BUFFER_BYTES`.
    """
    if memory["buffers"] <= MAX_BUFFER_BYTES:
        return None
    return (
        f"buffers take {memory['buffers'] / 2**20:.0f} MiB beside the heads, more than "
        f"{MAX_BUFFER_BYTES >> 20}"
    )
