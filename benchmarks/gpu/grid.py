# SPDX-License-Identifier: Apache-2.0
"""What is measured: batches, contexts, row counts, and what fits into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PLAIN = 1
"""The row count of plain vLLM: a step has one row per request."""

# vLLM keeps keys and values in blocks; a request wastes at most one.
_BLOCK_TOKENS = 128


@dataclass(frozen=True, order=True)
class Cell:
    """Requests that run at once, and tokens of each about halfway."""

    context: int
    batch: int

    @property
    def place(self) -> dict[str, int]:
        """As it stands in a record."""
        return {"context": self.context, "batch": self.batch}

    def kv_tokens(self, growth: int, rows: int) -> int:
        """Room for keys and values that `batch` requests of this context take.

        `growth` are the tokens that each gains while it is timed, `rows` those of its
        tree.
        """
        return self.batch * (self.context + growth + rows + _BLOCK_TOKENS)


@dataclass(frozen=True)
class Grid:
    """All cells, and how long each is timed.

    `steps` are timed after `warm_up` others, `repeats` times in turn with the other
    row counts. A request gains at most `tokens_per_step` tokens in each.
    """

    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    rows: tuple[int, ...]
    steps: int
    warm_up: int
    repeats: int
    tokens_per_step: int

    @property
    def growth(self) -> int:
        """Tokens that a request may gain in one visit."""
        return self.tokens_per_step * (self.steps + self.warm_up)

    @property
    def max_model_len(self) -> int:
        """Longest sequence, tree and all."""
        return max(self.contexts) + self.growth + max(self.rows)

    def cells(self, kv_tokens: int) -> Iterator[Cell]:
        """The cells whose keys and values fit into `kv_tokens` tokens."""
        for cell in self.all_cells():
            if cell.kv_tokens(self.growth, max(self.rows)) <= kv_tokens:
                yield cell

    def all_cells(self) -> Iterator[Cell]:
        """Every cell, short contexts and small batches first."""
        for context in sorted(self.contexts):
            for batch in sorted(self.batches):
                yield Cell(context, batch)


def split(rows: Sequence[int], engines: int) -> list[list[int]]:
    """Row counts in groups, so that each and plain vLLM are at most `engines` engines.

    ValueError if that leaves no place beside plain vLLM.
    """
    size = engines - 1
    if size < 1:
        raise ValueError(f"{engines} engine(s): plain vLLM and one more are compared")
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
