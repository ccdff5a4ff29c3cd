# SPDX-License-Identifier: Apache-2.0
"""A row's mask is that of a fresh grammar that has read the row's own path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from vllm.v1.structured_output.backend_outlines import OutlinesBackend
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from tests.unit.structured_output.rows import (
    PATTERN,
    TREE,
    check_rows,
    ids,
    make_manager,
    make_request,
    mask_behind,
)
from vllm_medusa.tree.token_tree import TokenTree

# vLLM's fourth, lm-format-enforcer, refuses to compile where anything is speculated.
BACKENDS = (XgrammarBackend, GuidanceBackend, OutlinesBackend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_own_path(tokenizer: Any, backend: type) -> None:
    manager = make_manager(tokenizer, backend=backend)
    committed = ids(tokenizer, "abcb")
    request = make_request(manager, PATTERN, committed)
    # The texts of the rows: a, c, x; ax, ay, cx; axa; and behind x, which is refused.
    drafts = ids(tokenizer, "acxxyxaab")
    before = mask_behind(manager, PATTERN, committed)
    masks = manager.grammar_bitmask({"r": request}, ["r"], {"r": drafts})
    assert check_rows(manager, TREE, masks, PATTERN, committed, drafts) == 3
    # Siblings allow different tokens behind them.
    assert (masks[4] != masks[1]).any() and (masks[7] != masks[4]).any()

    # The grammar stands where it stood: once more, and one path for real.
    again = manager.grammar_bitmask({"r": request}, ["r"], {"r": []})
    np.testing.assert_array_equal(again[0], before)
    taken = [drafts[row - 1] for row in (1, 4, 7)]
    assert manager.accept_tokens(request, taken)
    after = manager.grammar_bitmask({"r": request}, ["r"], {"r": []})
    np.testing.assert_array_equal(after[0], masks[7])


@pytest.mark.parametrize("backend", BACKENDS)
def test_end_of_text(tokenizer: Any, backend: type) -> None:
    """A grammar ends with the token that ends the text; behind it nothing counts."""
    manager = make_manager(tokenizer, backend=backend)
    committed = ids(tokenizer, "abcba")
    request = make_request(manager, PATTERN, committed)
    # Row 1 may be the last, 4 ends the text behind it, 7 stands behind the end.
    drafts = ids(tokenizer, "xy$$acaab")
    masks = manager.grammar_bitmask({"r": request}, ["r"], {"r": drafts})
    check_rows(manager, TREE, masks, PATTERN, committed, drafts)
    assert (masks[4] == -1).all() and (masks[7] == -1).all()
    again = manager.grammar_bitmask({"r": request}, ["r"], {"r": drafts})
    np.testing.assert_array_equal(again, masks)


@settings(max_examples=60)
@given(data=st.data())
def test_any_tree(tokenizer: Any, data: st.DataObject) -> None:
    parents = [-1]
    for row in range(1, data.draw(st.integers(3, 12)) + 1):
        parents.append(data.draw(st.integers(0, row - 1)))
    tree = TokenTree(tuple(parents), (-1, *range(len(parents) - 1)))
    num_drafts = data.draw(st.integers(0, tree.num_nodes))
    text = data.draw(st.text("abc$?", min_size=num_drafts, max_size=num_drafts))
    drafts = ids(tokenizer, text)
    if tree.is_chain:
        return
    manager = make_manager(tokenizer, tree)
    pattern = "(ab|ac|b[abc]{1,3}|cc)+"
    request = make_request(manager, pattern)
    masks = manager.grammar_bitmask({"r": request}, ["r"], {"r": drafts})
    check_rows(manager, tree, masks, pattern, (), drafts)


@pytest.mark.parametrize("num_drafts", range(TREE.num_nodes + 1))
def test_cut_tree(tokenizer: Any, num_drafts: int) -> None:
    manager = make_manager(tokenizer)
    drafts = ids(tokenizer, "aaabbbczz")[:num_drafts]
    request = make_request(manager, PATTERN)
    masks = manager.grammar_bitmask({"r": request}, ["r"], {"r": drafts})
    check_rows(manager, TREE, masks, PATTERN, (), drafts)


def test_placeholders(tokenizer: Any) -> None:
    """The drafts are still on the device: nothing is known but the root."""
    manager = make_manager(tokenizer)
    committed = ids(tokenizer, "abcb")
    request = make_request(manager, PATTERN, committed)
    masks = manager.grammar_bitmask({"r": request}, ["r"], {"r": [-1] * 9})
    root = mask_behind(manager, PATTERN, committed)
    for row in range(10):
        np.testing.assert_array_equal(masks[row], root)


class Reasoner:
    """Reasoning ends with the token "!"."""

    def __init__(self, end: int) -> None:
        self.end = end

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        return self.end in input_ids

    def is_reasoning_end_streaming(
        self, input_ids: Sequence[int], delta_ids: Sequence[int]
    ) -> bool:
        return self.end in delta_ids


def test_reasoning(tokenizer: Any) -> None:
    """The grammar begins behind the end of the reasoning, on each path by itself."""
    manager = make_manager(tokenizer)
    (end,) = ids(tokenizer, "!")
    manager.reasoner_cls = Reasoner
    request = make_request(manager, PATTERN)
    request.structured_output_request.reasoner = Reasoner(end)
    request.all_token_ids = ids(tokenizer, "zz")
    # Row 1 ends it, 4 and 5 are content, 7 too; 6 ends it behind 2; 3, 8, 9 do not.
    drafts = ids(tokenizer, "!xyaz!bxy")
    masks = manager.grammar_bitmask({"r": request}, ["r"], {"r": drafts})
    # The content of the rows whose masks the grammar gives; 5 is refused.
    contents = {1: "", 4: "a", 7: "ab", 6: ""}
    for row, content in contents.items():
        expected = mask_behind(manager, PATTERN, ids(tokenizer, content))
        np.testing.assert_array_equal(masks[row], expected, err_msg=f"row {row}")
    np.testing.assert_array_equal(masks[5], masks[1])
    for row in (0, 2, 3, 8, 9):
        assert (masks[row] == -1).all(), row
    assert mask_behind(manager, PATTERN, ids(tokenizer, "z")) is None
