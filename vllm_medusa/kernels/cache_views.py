# SPDX-License-Identifier: Apache-2.0
"""Strided views of KV caches as a kernel addresses them: words at addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# The widest integer that Triton copies; narrower ones where it does not fit.
_WORD_BYTES = 8


@dataclass(frozen=True, slots=True)
class ViewLayout:
    """Where the rows of a view [num_blocks, block_size, num_heads, head_size] lie.

    A row (one position's keys or values) is copied as `num_heads * head_words`
    integers of `word_bytes` bytes. Strides count such words.
    """

    word_bytes: int
    block_size: int
    num_heads: int
    head_words: int
    block_stride: int
    slot_stride: int
    head_stride: int
    word_stride: int

    @staticmethod
    def of(view: torch.Tensor) -> ViewLayout:
        """Read the layout off a view, with the widest words that it allows."""
        _, block_size, num_heads, head_size = view.shape
        size = view.element_size()
        *outer, inner = view.stride()
        head_bytes = head_size * size
        word = size
        if inner == 1:
            word = _WORD_BYTES
            sizes = (view.data_ptr(), head_bytes, *(stride * size for stride in outer))
            while any(number % word for number in sizes):
                word //= 2
        block_stride, slot_stride, head_stride = (
            stride * size // word for stride in outer
        )
        return ViewLayout(
            word_bytes=word,
            block_size=block_size,
            num_heads=num_heads,
            head_words=head_bytes // word,
            block_stride=block_stride,
            slot_stride=slot_stride,
            head_stride=head_stride,
            word_stride=inner,
        )


@dataclass(frozen=True, slots=True)
class ViewGroup:
    """Views of one layout, which one launch can serve."""

    layout: ViewLayout
    views: list[torch.Tensor]
    """Kept, so that the addresses stay valid."""
    addresses: torch.Tensor
    """[len(views)] int64 on the views' device, where each view begins."""


def group_views(views: Sequence[torch.Tensor]) -> list[ViewGroup]:
    """Group views by layout; a view given twice (a cache of two layers) counts once."""
    groups: dict[ViewLayout, dict[int, torch.Tensor]] = {}
    for view in views:
        groups.setdefault(ViewLayout.of(view), {}).setdefault(view.data_ptr(), view)
    return [
        ViewGroup(
            layout,
            list(members.values()),
            torch.tensor(list(members), dtype=torch.int64).to(views[0].device),
        )
        for layout, members in groups.items()
    ]
