# SPDX-License-Identifier: Apache-2.0
"""The tree-by-batch table: how many nodes to verify for how many requests."""

from __future__ import annotations

from itertools import pairwise

from vllm_medusa.errors import ConfigError
from vllm_medusa.wording import show

BatchTable = tuple[tuple[int, int, int], ...]
"""(first, last, nodes): with first to last running requests, `nodes` nodes each."""

TABLE_KEY = "num_speculative_tokens_per_batch_size"
"""vLLM's name for the table, in `speculative_config` and in calibration.json."""

_MOST = 2**31 - 1


def check_batch_table(table: object) -> BatchTable:
    """Return a table as tuples, sorted by batch size.

    The rules are those of vLLM, which will read the table: see
    `vllm.v1.spec_decode.dynamic.utils.validate_and_normalize_dynamic_sd_schedule`.

    Args:
        table: list of `[first, last, nodes]`; the ranges include both ends, do not
            overlap and start at 1. A batch size in a gap between two ranges or
            past the last takes the nodes of the range before it.

    Raises:
        ConfigError: naming the entry that cannot be.
    """
    if not isinstance(table, list | tuple) or not table:
        raise ConfigError(
            f"{TABLE_KEY} must be a non-empty list of [first, last, nodes] with first "
            f'and last a number of requests, or "auto", or null; not {show(table)}'
        )
    entries = sorted(_check_entry(entry) for entry in table)
    if entries[0][0] != 1:
        raise ConfigError(
            f"{TABLE_KEY} starts at {entries[0][0]} requests: its first range must "
            "start at 1"
        )
    for before, entry in pairwise(entries):
        if entry[0] <= before[1]:
            raise ConfigError(
                f"{TABLE_KEY}: the ranges {before[0]} to {before[1]} and {entry[0]} to "
                f"{entry[1]} overlap"
            )
    return tuple(entries)


def _check_entry(entry: object) -> tuple[int, int, int]:
    if (
        not isinstance(entry, list | tuple)
        or len(entry) != 3
        or any(type(value) is not int for value in entry)
    ):
        raise ConfigError(
            f"{TABLE_KEY}: {show(entry)} must be three integers [first, last, nodes]"
        )
    first, last, nodes = entry
    if not 1 <= first <= last <= _MOST:
        raise ConfigError(
            f"{TABLE_KEY}: the range {show(first)} to {show(last)} must satisfy "
            "1 <= first <= last, and be of numbers of requests"
        )
    if not 0 <= nodes <= _MOST:
        raise ConfigError(f"{TABLE_KEY}: {show(nodes)} nodes must be 0 or more")
    return first, last, nodes
