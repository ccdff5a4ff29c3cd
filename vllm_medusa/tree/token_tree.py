# SPDX-License-Identifier: Apache-2.0
"""The token tree: which (head, rank) guesses are verified together in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vllm_medusa.errors import TreeError
from vllm_medusa.wording import show

if TYPE_CHECKING:
    import torch

MAX_NODES = 1024
"""Most nodes of a tree: one request's query rows must fit a scheduler step."""

MAX_RANKS = 64
"""Ranks a head can give: valid ranks are 0 to 63."""

NodePath = tuple[int, ...]
"""Ranks from head 1 down: (0, 2) is head 1's best guess, then head 2's third."""


@dataclass(frozen=True)
class TokenTree:
    """An immutable, hashable tree over rows 0..N: row 0 the root, the rest nodes.

    Row 0 is the last sampled token. The nodes are ordered best first and every
    parent stands before its children, so the first n nodes are a tree themselves.
    A node at depth d holds one of the guesses of head d.

    Args:
        parents: length N + 1; `parents[0] == -1`, else `0 <= parents[r] < r`.
        ranks: length N + 1; `ranks[0] == -1`, else which guess of the head at
            that depth the node holds, 0 the best.

    Raises:
        TreeError: the two tuples do not describe such a tree.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        # Lists are welcome, but only tuples make the tree hashable.
        object.__setattr__(self, "parents", _int_tuple("parents", self.parents))
        object.__setattr__(self, "ranks", _int_tuple("ranks", self.ranks))
        if len(self.parents) != len(self.ranks):
            raise TreeError(
                f"a tree needs as many parents as ranks, not {len(self.parents)} "
                f"parents and {len(self.ranks)} ranks"
            )
        if self.parents[:1] != (-1,) or self.ranks[:1] != (-1,):
            raise TreeError("row 0 is the root: its parent and its rank must be -1")
        if self.num_nodes > MAX_NODES:
            raise TreeError(
                f"a tree of {self.num_nodes} nodes is too large: at most {MAX_NODES}"
            )
        seen = set()
        for row in range(1, self.num_nodes + 1):
            parent, rank = self.parents[row], self.ranks[row]
            if not 0 <= parent < row:
                raise TreeError(
                    f"row {row} has parent {parent}: a parent is an earlier row, "
                    f"0 to {row - 1}"
                )
            if not 0 <= rank < MAX_RANKS:
                raise TreeError(
                    f"row {row} has rank {rank}: ranks go from 0 to {MAX_RANKS - 1}"
                )
            if (parent, rank) in seen:
                raise TreeError(
                    f"row {row} repeats rank {rank} under parent {parent}: each "
                    "guess may stand once under its parent"
                )
            seen.add((parent, rank))

    @classmethod
    def from_paths(cls, paths: Sequence[Sequence[int]]) -> TokenTree:
        """Build a tree from the paths of its nodes, best first.

        The given order is kept. Where a child stands before its parent, it waits
        until the parent has come: a node is never worth more than its parent.

        Args:
            paths: for each node the ranks from head 1 down to the node.

        Raises:
            TreeError: naming the path that is empty, doubled, holds something
                other than ranks, or whose parent is missing (a gap).
        """
        if isinstance(paths, str | bytes) or not isinstance(paths, Sequence):
            raise TreeError(f"a tree is a list of paths, not {show(paths)}")
        if len(paths) > MAX_NODES:
            raise TreeError(
                f"a tree of {len(paths)} nodes is too large: at most {MAX_NODES}"
            )
        index: dict[NodePath, int] = {}
        for position, given in enumerate(paths):
            path = _checked_path(given)
            if path in index:
                raise TreeError(f"path {show(list(path))} stands twice in the tree")
            index[path] = position
        # The place of a node is the latest place on its path.
        place: dict[NodePath, tuple[int, int, int]] = {}
        for path in sorted(index, key=len):
            position = index[path]
            latest = position
            if len(path) > 1:
                if path[:-1] not in place:
                    raise TreeError(
                        f"path {show(list(path))} has a gap: its parent "
                        f"{show(list(path[:-1]))} is not in the tree"
                    )
                latest = max(position, place[path[:-1]][0])
            place[path] = (latest, len(path), position)
        rows: dict[NodePath, int] = {(): 0}
        for path in sorted(place, key=lambda path: place[path]):
            rows[path] = len(rows)
        nodes = list(rows)[1:]
        return cls(
            parents=(-1, *(rows[path[:-1]] for path in nodes)),
            ranks=(-1, *(path[-1] for path in nodes)),
        )

    @property
    def num_nodes(self) -> int:
        """N: the number of nodes, the root not counted."""
        return len(self.parents) - 1

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of each row, length N + 1; the root's is 0."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def max_depth(self) -> int:
        """Depth of the deepest node: how many heads the tree needs."""
        return max(self.depths)

    @cached_property
    def max_rank(self) -> int:
        """Largest rank in the tree; -1 for a tree without nodes."""
        return max(self.ranks)

    @cached_property
    def is_chain(self) -> bool:
        """Whether each row's parent is the row before it."""
        return self.parents == tuple(range(-1, self.num_nodes))

    @cached_property
    def paths(self) -> tuple[NodePath, ...]:
        """NodePath of each node in row order, length N (the root has none)."""
        paths: list[NodePath] = [()]
        for parent, rank in zip(self.parents[1:], self.ranks[1:], strict=True):
            paths.append((*paths[parent], rank))
        return tuple(paths[1:])

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Child rows of each row in row order, length N + 1."""
        children: list[list[int]] = [[] for _ in self.parents]
        for row, parent in enumerate(self.parents[1:], start=1):
            children[parent].append(row)
        return tuple(tuple(rows) for rows in children)

    @cached_property
    def ordinals(self) -> tuple[int, ...]:
        """Place of each row among its siblings in row order, length N + 1; the root's
        is 0."""
        ordinals = [0] * len(self.parents)
        for siblings in self.children:
            for ordinal, row in enumerate(siblings):
                ordinals[row] = ordinal
        return tuple(ordinals)

    @cached_property
    def max_children(self) -> tuple[int, ...]:
        """Most children of any row at depths 0 to `max_depth` - 1."""
        most = [0] * self.max_depth
        for depth, rows in zip(self.depths, self.children, strict=True):
            if rows:
                most[depth] = max(most[depth], len(rows))
        return tuple(most)

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """Nodes without children, in row order (the root is never one of them)."""
        return tuple(
            row for row in range(1, self.num_nodes + 1) if not self.children[row]
        )

    @cached_property
    def nodes_per_depth(self) -> tuple[int, ...]:
        """Number of nodes at depths 1 to `max_depth`."""
        counts = [0] * self.max_depth
        for depth in self.depths[1:]:
            counts[depth - 1] += 1
        return tuple(counts)

    def ancestor_mask(self) -> torch.Tensor:
        """Which rows see which: entry [r, a] is True if a is r or an ancestor of r.

        Returns:
            A new bool tensor [N + 1, N + 1] on the CPU.
        """
        import torch

        # [num_nodes + 1, num_nodes + 1]
        mask = torch.eye(self.num_nodes + 1, dtype=torch.bool)
        for row, parent in enumerate(self.parents[1:], start=1):
            mask[row] |= mask[parent]
        return mask

    def truncate(self, num_nodes: int) -> TokenTree:
        """Return the tree of the first `num_nodes` nodes.

        Raises:
            TreeError: `num_nodes` is negative or more than the tree has.
        """
        if not 0 <= num_nodes <= self.num_nodes:
            raise TreeError(
                f"cannot cut a tree of {self.num_nodes} nodes to {num_nodes}: "
                f"give 0 to {self.num_nodes}"
            )
        if num_nodes == self.num_nodes:
            return self
        return TokenTree(self.parents[: num_nodes + 1], self.ranks[: num_nodes + 1])

    def limit_depth(self, max_depth: int) -> TokenTree:
        """Return the tree of the nodes no deeper than `max_depth`, in their order."""
        if max_depth >= self.max_depth:
            return self
        return TokenTree.from_paths([p for p in self.paths if len(p) <= max_depth])

    def check_heads(self, num_heads: int) -> None:
        """Refuse a tree that is deeper than there are heads.

        Raises:
            TreeError: the tree needs more than `num_heads` heads.
        """
        if self.max_depth > num_heads:
            raise TreeError(
                f"the tree is {self.max_depth} deep but there are only {num_heads} "
                "heads: each depth needs its own head; choose a shallower tree"
            )


def _int_tuple(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, list | tuple):
        raise TreeError(f"{name} must be a tuple of integers, not {show(values)}")
    for value in values:
        if type(value) is not int:
            raise TreeError(f"{name} must be integers, not {show(value)}")
    return tuple(values)


def _checked_path(path: object) -> NodePath:
    if not isinstance(path, list | tuple):
        raise TreeError(f"a path is a list of ranks, not {show(path)}")
    if not path:
        raise TreeError("an empty path in the tree: the root is there by itself")
    for rank in path:
        # bool is an int for Python, but never a rank.
        if type(rank) is not int or not 0 <= rank < MAX_RANKS:
            raise TreeError(
                f"path {show(path)} holds {show(rank)}: a rank is an integer from "
                f"0 to {MAX_RANKS - 1}"
            )
    return tuple(path)
