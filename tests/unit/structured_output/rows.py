# SPDX-License-Identifier: Apache-2.0
"""The mask of a tree's row, from a grammar of its own that reads the row's path."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
from vllm.v1.structured_output.request import StructuredOutputRequest

from tests.engine.support.models import EOS, VOCAB_SIZE
from vllm_medusa.engine_config import PROPOSER
from vllm_medusa.tree.token_tree import TokenTree

REGEX = StructuredOutputOptions.REGEX
# Rows: 1-3 under the root, 4 and 5 under 1, 6 under 2, 7 under 4, 8 under 3.
TREE = TokenTree.from_paths(
    [[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [2, 0], [2, 0, 0]]
)
MAX_NUM_SEQS = 4
PATTERN = "ab[cd](b[ac][xy]|cz)[a-z]?[0-9]?"


def vllm_config(num_drafts: int, model: str, paths: object, acceptance: str) -> Any:
    """What the manager and its back ends ask of a VllmConfig."""
    config = {"heads": "folder", "tree": paths, "acceptance": acceptance}
    options = {"config": config}
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
    acceptance: str = "exact",
) -> StructuredOutputManager:
    paths = [list(path) for path in tree.paths]
    config = vllm_config(tree.num_nodes, model, paths, acceptance)
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
