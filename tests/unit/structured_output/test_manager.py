# SPDX-License-Identifier: Apache-2.0
"""Batches of requests, and engines whose masks stay vLLM's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.utils import apply_grammar_bitmask

from tests.engine.support.models import VOCAB_SIZE
from tests.unit.structured_output.rows import (
    PATTERN,
    TREE,
    check_rows,
    ids,
    make_manager,
    make_request,
)
from vllm_medusa.engine_config import PROPOSER
from vllm_medusa.tree.token_tree import TokenTree


def test_batch(tokenizer: Any) -> None:
    """Every request's rows, as vLLM itself finds them and applies them to logits."""
    manager = make_manager(tokenizer)
    committed = {
        "whole": ids(tokenizer, "ab"),
        "without": ids(tokenizer, "abccz"),
        "cut": ids(tokenizer, "abcb"),
    }
    requests = {
        name: make_request(manager, PATTERN, tokens)
        for name, tokens in committed.items()
    }
    drafts = {
        "whole": ids(tokenizer, "cdxbccazz"),
        "cut": ids(tokenizer, "axcxy"),
        "plain": ids(tokenizer, "acabc"),
    }
    order = ["cut", "without", "whole"]
    bitmask = manager.grammar_bitmask(requests, order, drafts)
    # The runner's order is another, and it has a request without a grammar.
    batch = ["plain", "whole", "cut", "without"]
    num_rows = [1 + len(drafts.get(name, ())) for name in batch]
    logits = torch.zeros(sum(num_rows), VOCAB_SIZE)
    apply_grammar_bitmask(
        SimpleNamespace(scheduled_spec_decode_tokens=drafts),
        SimpleNamespace(structured_output_request_ids=order, grammar_bitmask=bitmask),
        SimpleNamespace(req_ids=batch),
        logits,
    )
    rows = dict(zip(batch, logits.split(num_rows), strict=True))
    assert (rows.pop("plain") == 0.0).all()
    for name, of_request in rows.items():
        allowed = np.packbits(
            (of_request == 0.0).numpy(), axis=-1, bitorder="little"
        ).view(np.int32)
        check_rows(
            manager,
            TREE,
            allowed,
            PATTERN,
            committed[name],
            drafts.get(name, ()),
        )


def test_result_is_kept(tokenizer: Any) -> None:
    """vLLM may still read a step's masks when the next step's are made."""
    manager = make_manager(tokenizer)
    request = make_request(manager, PATTERN)
    masks = manager.grammar_bitmask({"r": request}, ["r"], {"r": [-1]})
    copy = masks.copy()
    assert manager.accept_tokens(request, ids(tokenizer, "ab"))
    manager.grammar_bitmask({"r": request}, ["r"], {"r": [-1]})
    np.testing.assert_array_equal(masks, copy)
    assert manager.grammar_bitmask({}, [], {}) is None


def test_drafts_are_not_filtered(tokenizer: Any) -> None:
    """Without the refused first draft the second would be another row."""
    manager = make_manager(tokenizer)
    request = make_request(manager, PATTERN)
    drafts = ids(tokenizer, "zab")
    assert manager.validate_tokens(request, drafts) == drafts


CHAIN = TokenTree((-1, 0, 1, 2), (-1, 0, 0, 0))


@pytest.mark.parametrize("text", ["abz", "abc", "zab", "a??", "ab"])
def test_a_chain_of_drawn_candidates_is_not_filtered(tokenizer: Any, text: str) -> None:
    """Rejection sampling must see what was drawn, be it excluded by the grammar."""
    manager = make_manager(tokenizer, CHAIN, acceptance="rejection")
    request = make_request(manager, PATTERN)
    drafts = ids(tokenizer, text)
    assert manager.validate_tokens(request, drafts) == drafts
    masks = manager.grammar_bitmask({"r": request}, ["r"], {"r": drafts})
    num_refused = check_rows(manager, CHAIN, masks, PATTERN, (), drafts)
    assert num_refused == {"abz": 1, "abc": 0, "zab": 3, "a??": 2, "ab": 0}[text]


@pytest.mark.parametrize(
    ("tree", "model"), [(CHAIN, PROPOSER), (TREE, "another.Proposer")]
)
def test_as_upstream(tokenizer: Any, tree: TokenTree, model: str) -> None:
    """Chains, and engines without Medusa."""
    manager = make_manager(tokenizer, tree, model=model)
    request = make_request(manager, PATTERN)
    drafts = ids(tokenizer, "abz")
    assert manager.validate_tokens(request, drafts) == drafts[:2]
    arguments = {"r": request}, ["r"], {"r": drafts[:2]}
    masks = manager.grammar_bitmask(*arguments).copy()
    expected = StructuredOutputManager.grammar_bitmask.__wrapped__(manager, *arguments)
    np.testing.assert_array_equal(masks, expected)
