# SPDX-License-Identifier: Apache-2.0
"""What a soak test found, and whether anything is off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.soaking.memory import Growth, Sample, growth
from benchmarks.soaking.tally import Tally

_COUNTERS = {
    "preemptions": "vllm:num_preemptions",
    "prompt_tokens": "vllm:prompt_tokens",
    "cached_prompt_tokens": "vllm:prefix_cache_hits",
}


def report(tally: Tally, run: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a run of `run_served`, for JSON; "off" lists what is wrong."""
    stats = run["medusa_stats"]
    counters = {name: int(run["metrics"][key]) for name, key in _COUNTERS.items()}
    trees, accepted = stats["trees"], stats["accepted"]
    samples: list[Sample] = run["samples"]
    grown = growth(samples)
    return {
        "seconds": round(run["seconds"], 1),
        **tally.as_dict(),
        **counters,
        "trees": trees,
        "tokens_per_step": round(1 + accepted / trees, 3) if trees else 1.0,
        "memory": {
            **asdict(grown),
            "first_by_process_mib": _rounded(samples[0].mib),
            "last_by_process_mib": _rounded(samples[-1].mib),
        },
        "left_when_idle": run["left"],
        "off": list(_off(tally, counters, stats, grown, run["left"])),
        "faults": tally.faults,
    }


def _rounded(mib: Mapping[str, float]) -> dict[str, float]:
    return {role: round(value, 1) for role, value in mib.items()}


def _off(
    tally: Tally,
    counters: Mapping[str, int],
    stats: Mapping[str, Any],
    grown: Growth,
    left: Mapping[str, Any],
) -> list[str]:
    """What is wrong; a run that never came to what it is for is wrong, too."""
    found = []
    if tally.mismatches:
        found.append(f"{tally.mismatches} answers are not those of plain vLLM")
    if grown.is_leak:
        found.append(
            f"memory grew by {grown.growth_mib} MiB, more than {grown.tolerance_mib}"
        )
    found += [
        f"the idle engine still holds {count} {name}"
        for name, count in left.items()
        if name != "cache_reset" and count
    ]
    if not left["cache_reset"]:
        found.append("not all blocks of the KV cache are free")
    never = {
        "preempted": counters["preemptions"],
        "found a prefix in the cache": counters["cached_prompt_tokens"],
        "cancelled": tally.cancelled,
        "compared": tally.compared,
        "accepted a node": stats["accepted"],
        "moved a row": stats["moved"],
    }
    found += [f"nothing was ever {what}" for what, count in never.items() if not count]
    return found
