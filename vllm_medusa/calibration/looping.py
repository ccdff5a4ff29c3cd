# SPDX-License-Identifier: Apache-2.0
"""Where a greedy answer starts to repeat itself.

Small models loop under greedy decoding, and a loop is what any speculation guesses
best: figures over whole answers flatter it. So speed is also told for the part of
each answer before its first loop.
"""

from __future__ import annotations

from collections.abc import Sequence

WINDOW = 8


def first_looping_position(
    token_ids: Sequence[int], window: int = WINDOW
) -> int | None:
    """Index of the first token whose `window` last tokens stand earlier in the answer.

    The window ends at the token itself; the earlier occurrence may overlap it. None
    if no window repeats. ValueError if `window` < 1.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    seen: set[tuple[int, ...]] = set()
    for end in range(window, len(token_ids) + 1):
        key = tuple(token_ids[end - window : end])
        if key in seen:
            return end - 1
        seen.add(key)
    return None


def length_without_loop(token_ids: Sequence[int], window: int = WINDOW) -> int:
    """How many leading tokens of an answer come before its first looping one."""
    position = first_looping_position(token_ids, window)
    return len(token_ids) if position is None else position
