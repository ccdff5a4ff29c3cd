# SPDX-License-Identifier: Apache-2.0
"""Requests that reach a running Ray Data pipeline as they come up.

A data set is read once, from start to end, and its engines live as long as that takes.
A conversation's second turn is only known when its first was answered: so the data
set's one read task takes rows from a mailbox, and ends when that is closed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import ray
from ray.data import Datasource, ReadTask
from ray.data.block import Block, BlockMetadata
from ray.data.context import DataContext

POLL_SECONDS = 0.05
"""How long the read task waits before it looks into an empty mailbox again."""


class Mailbox:
    """Rows that wait to be read; an actor, so that the read task may run anywhere."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._is_closed = False

    def put(self, rows: list[dict[str, Any]]) -> None:
        """Add rows."""
        self._rows += rows

    def close(self) -> None:
        """Let the reader end once all rows are taken."""
        self._is_closed = True

    def take(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the waiting rows, and whether there will be no more."""
        rows, self._rows = self._rows, []
        return rows, self._is_closed


def open_mailbox() -> Any:
    """Start the actor of a mailbox; it ends with the last handle of it."""
    return ray.remote(num_cpus=0)(Mailbox).remote()


class MailboxDatasource(Datasource):
    """A data set whose rows are those put into a mailbox, one a block.

    Args:
        mailbox: handle of a `Mailbox`.
    """

    def __init__(self, mailbox: Any) -> None:
        super().__init__()
        self._mailbox = mailbox

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: rows are still to come."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """One task, whatever the parallelism: it only passes rows on."""
        mailbox = self._mailbox
        metadata = BlockMetadata(
            num_rows=None, size_bytes=None, input_files=None, exec_stats=None
        )
        return [ReadTask(lambda: _blocks(mailbox), metadata)]


def _blocks(mailbox: Any) -> Iterable[Block]:
    import pyarrow

    while True:
        rows, is_closed = ray.get(mailbox.take.remote())
        for row in rows:
            yield pyarrow.Table.from_pylist([row])
        if is_closed:
            return
        if not rows:
            time.sleep(POLL_SECONDS)


def rows_of(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a running data set as soon as they are there.

    `Dataset.iter_rows` would wait for rows to prefetch, which may never come.
    """
    for bundle in dataset.iter_internal_ref_bundles():
        for reference in bundle.block_refs:
            yield from ray.get(reference).to_pylist()
