# SPDX-License-Identifier: Apache-2.0
"""A row's mask is that of a fresh grammar that has read the row's own path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1 import structured_output as upstream
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_guidance import GuidanceBackend
from vllm.v1.structured_output.backend_outlines import OutlinesBackend
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
from vllm.v1.structured_output.request import StructuredOutputRequest
from vllm.v1.structured_output.utils import apply_grammar_bitmask

from tests.engine.support.models import EOS, VOCAB_SIZE, build_tokenizer
from vllm_medusa import plugin
from vllm_medusa.engine_config import PROPOSER
from vllm_medusa.tree.token_tree import TokenTree

# vLLM's fourth, lm-format-enforcer, refuses to compile where anything is speculated.
BACKENDS = (XgrammarBackend, GuidanceBackend, OutlinesBackend)
REGEX = StructuredOutputOptions.REGEX
# Rows: 1-3 under the root, 4 and 5 under 1, 6 under 2, 7 under 4, 8 under 3.
TREE = TokenTree.from_paths(
    [[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [2, 0], [2, 0, 0]]
)
MAX_NUM_SEQS = 4


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    plugin.register()


@pytest.fixture(autouse=True)
def no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM logs an error for a draft that the grammar refuses."""

    def error(message: str, *args: object) -> None:
        raise AssertionError(message % args)

    monkeypatch.setattr(upstream.logger, "error", error)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def vllm_config(num_drafts: int, model: str, paths: object) -> Any:
    """What the manager and its back ends ask of a VllmConfig."""
    options = {"config": {"heads": "folder", "tree": paths}}
    return SimpleNamespace(
        parallel_config=SimpleNamespace(distributed_executor_backend=None),
        scheduler_config=SimpleNamespace(max_num_seqs=MAX_NUM_SEQS),
        model_config=SimpleNamespace(
            # The tokenizer is given to the back end directly.
            skip_tokenizer_init=True,
            is_diffusion=False,
            hf_config=SimpleNamespace(model_type="llama"),
        ),
        structured_outputs_config=SimpleNamespace(
            enable_in_reasoning=False,
            disable_any_whitespace=False,
            disable_additional_properties=False,
        ),
        speculative_config=SimpleNamespace(
            model=model, num_speculative_tokens=num_drafts
        ),
        num_speculative_tokens=num_drafts,
        additional_config={"medusa": options},
    )


def make_manager(
    tokenizer: Any,
    tree: TokenTree = TREE,
    backend: type = XgrammarBackend,
    model: str = PROPOSER,
) -> StructuredOutputManager:
    config = vllm_config(tree.num_nodes, model, [list(path) for path in tree.paths])
    manager = StructuredOutputManager(config)
    manager.backend = backend(config, tokenizer=tokenizer, vocab_size=VOCAB_SIZE)
    return manager


def make_request(
    manager: StructuredOutputManager, pattern: str, committed: Sequence[int] = ()
) -> Any:
    assert manager.backend is not None
    grammar = manager.backend.compile_grammar(REGEX, pattern)
    for token in committed:
        assert grammar.accept_tokens("", [token])
    structured = StructuredOutputRequest(StructuredOutputsParams(regex=pattern))
    structured.grammar = grammar
    return SimpleNamespace(
        request_id="r",
        use_structured_output=True,
        all_token_ids=list(committed),
        prompt_token_ids=[],
        structured_output_request=structured,
    )


def ids(tokenizer: Any, text: str) -> list[int]:
    """One token per character; "$" is the end of the text, "?" a placeholder."""
    special = {"$": EOS, "?": -1}
    return [special.get(c) or tokenizer.convert_tokens_to_ids(c) for c in text]


# [vocab_size / 32] int32, or None if the grammar refuses the tokens
def mask_behind(
    manager: StructuredOutputManager, pattern: str, tokens: Sequence[int]
) -> np.ndarray | None:
    """The mask of a grammar of its own that reads the tokens one by one."""
    assert manager.backend is not None
    grammar = manager.backend.compile_grammar(REGEX, pattern)
    mask = manager.backend.allocate_token_bitmask(1)
    for token in tokens:
        if grammar.is_terminated() or grammar.validate_tokens([token]) != [token]:
            return None
        assert grammar.accept_tokens("", [token])
    if grammar.is_terminated():
        mask.fill_(-1)
    else:
        grammar.fill_bitmask(mask, 0)
    return mask[0].numpy()


def path_to(tree: TokenTree, row: int) -> list[int]:
    """Rows from depth 1 down to `row`."""
    rows: list[int] = []
    while row > 0:
        rows.insert(0, row)
        row = tree.parents[row]
    return rows


def check_rows(
    manager: StructuredOutputManager,
    tree: TokenTree,
    masks: np.ndarray,
    pattern: str,
    committed: Sequence[int],
    drafts: Sequence[int],
) -> int:
    """Compare every row; return how many rows can't be reached."""
    num_refused = 0
    for row in range(1 + len(drafts)):
        path = [drafts[node - 1] for node in path_to(tree, row)]
        expected = None
        if min(path, default=0) >= 0:
            expected = mask_behind(manager, pattern, [*committed, *path])
        if expected is None:
            num_refused += 1
            expected = masks[tree.parents[row]]
        np.testing.assert_array_equal(masks[row], expected, err_msg=f"row {row}")
    return num_refused


PATTERN = "ab[cd](b[ac][xy]|cz)[a-z]?[0-9]?"


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
