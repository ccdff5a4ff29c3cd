# SPDX-License-Identifier: Apache-2.0
"""Which rows of a step are of a tree, as the attention metadata builders ask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vllm_medusa.runner.v2.step_trees import StepTrees
from vllm_medusa.runner.v2.tree_state import TreeState
from vllm_medusa.tree import TokenTree, chain

TREE = TokenTree.from_paths([[0], [1], [0, 0], [0, 1]])
DEPTHS = [0, 1, 1, 2, 2]


def batch(num_rows: list[int], num_drafts: list[int], base: int = 10) -> Any:
    """A step's batch; requests with drafts come first, each at position `base`."""
    ends = np.cumsum([0, *num_rows])
    num_logits = [drafts + 1 for drafts in num_drafts]
    logits = [
        (request, ends[request + 1] - count + row, row)
        for request, count in enumerate(num_logits)
        for row in range(count)
    ]
    requests, indices, rows = (
        torch.tensor(column) for column in zip(*logits, strict=True)
    )
    return SimpleNamespace(
        num_reqs=len(num_rows),
        num_draft_tokens=sum(num_drafts),
        num_draft_tokens_per_req=np.array(num_drafts),
        query_start_loc_np=ends,
        num_scheduled_tokens=np.array(num_rows),
        idx_mapping=torch.arange(len(num_rows)),
        expanded_idx_mapping=requests,
        expanded_local_pos=rows.int(),
        logits_indices=indices,
        positions=torch.cat([base + torch.arange(count) for count in num_rows]),
    )


def common(num_rows: list[int], base: int = 10) -> Any:
    """vLLM's metadata of a batch; no rows are padding."""
    ends = np.cumsum([0, *num_rows])
    return SimpleNamespace(
        num_reqs=len(num_rows),
        num_actual_tokens=int(ends[-1]),
        max_query_len=max(num_rows),
        max_seq_len=64,
        query_start_loc=torch.tensor(ends, dtype=torch.int32),
        seq_lens=torch.tensor([base + n if n else 0 for n in num_rows]).int(),
    )


def step_trees(tree: TokenTree = TREE) -> StepTrees:
    return StepTrees(TreeState(tree, max_num_reqs=8, device=torch.device("cpu")))


def test_trees_lead_a_mixed_step() -> None:
    """Two trees, one of them cut; a plain request; a prompt."""
    trees = step_trees()
    rows = [5, 3, 1, 7]
    step = batch(rows, [4, 2, 0, 0])
    trees.begin(step, ())
    assert step.positions.tolist() == (
        [10 + depth for depth in DEPTHS]
        + [10 + depth for depth in DEPTHS[:3]]
        + [10]
        + list(range(10, 17))
    )
    found = trees.rows(common(rows), for_capture=False)
    assert found is not None
    assert (found.num_reqs, found.num_tokens, found.width) == (2, 8, 5)
    assert not found.is_whole_step
    assert found.query_start_loc.tolist() == [0, 5, 8]
    assert found.seq_lens.tolist() == [15, 13]
    assert torch.equal(found.ancestors[1], TREE.ancestor_mask())


def test_a_step_of_trees_alone_keeps_the_padding_of_its_graph() -> None:
    """The graph was captured for four requests, and this step has three."""
    trees = step_trees()
    trees.begin(batch([5, 5, 5], [4, 4, 4]), ())
    padded = common([5, 5, 5, 0])
    padded.num_actual_tokens = 20
    found = trees.rows(padded, for_capture=False)
    assert found is not None
    assert (found.num_reqs, found.num_tokens, found.width) == (4, 20, 5)
    assert found.is_whole_step


def test_a_capture_is_of_uniform_trees_or_of_none() -> None:
    trees = step_trees()
    found = trees.rows(common([5, 5]), for_capture=True)
    assert found is not None
    assert (found.num_reqs, found.num_tokens, found.width) == (2, 10, 5)
    assert found.is_whole_step
    assert trees.rows(common([1, 1, 1]), for_capture=True) is None


def test_steps_without_trees() -> None:
    trees = step_trees()
    trees.begin(batch([5], [4]), ())
    step = batch([1, 4], [0, 0])
    trees.begin(step, ())
    assert step.positions.tolist() == [10, 10, 11, 12, 13]
    assert trees.rows(common([1, 4]), for_capture=False) is None
    trees.begin(batch([5], [4]), ())
    trees.clear()
    assert trees.rows(common([5]), for_capture=False) is None


def test_a_chain_takes_the_causal_path() -> None:
    trees = step_trees(chain(3))
    step = batch([4, 2], [3, 1])
    trees.begin(step, ())
    assert step.positions.tolist() == [10, 11, 12, 13, 10, 11]
    assert trees.num_trees == 2
    assert trees.rows(common([4, 2]), for_capture=False) is None
    assert trees.rows(common([4, 4]), for_capture=True) is None
