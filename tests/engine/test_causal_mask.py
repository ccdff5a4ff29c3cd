# SPDX-License-Identifier: Apache-2.0
"""Proof of the wiring: tree attention with a causal mask gives vLLM's own logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, token_ids
from tests.runner import sample
from vllm_medusa.attention.cpu import TreeCPUAttentionImpl
from vllm_medusa.attention.tree_batch import TreeLayout
from vllm_medusa.runner.v1 import MedusaCPUModelRunner
from vllm_medusa.runner.v2.tree_state import TreeState
from vllm_medusa.runner.v2.verifier import TreeVerifier

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((12, 24), (6, 12))


def keep_logits(monkeypatch: pytest.MonkeyPatch, logits: list[torch.Tensor]) -> None:
    """Keep what either runner verifies trees from: [num_rows, vocab_size] a step."""
    sample_rows, verify = MedusaCPUModelRunner._sample_rows, TreeVerifier.__call__

    def keep_v1(self: Any, rows: torch.Tensor, *rest: Any) -> Any:
        logits.append(rows.clone())
        return sample_rows(self, rows, *rest)

    def keep_v2(self: Any, rows: torch.Tensor, *rest: Any) -> Any:
        logits.append(rows.clone())
        return verify(self, rows, *rest)

    monkeypatch.setattr(MedusaCPUModelRunner, "_sample_rows", keep_v1)
    monkeypatch.setattr(TreeVerifier, "__call__", keep_v2)


def take_chains_for_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chains go through tree attention, with their mask, in either runner."""
    layout_of, init = TreeLayout.of, TreeState.__init__

    def state(self: TreeState, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.is_chain = False

    monkeypatch.setattr(
        TreeLayout,
        "of",
        staticmethod(lambda *args: replace(layout_of(*args), is_chain=False)),
    )
    monkeypatch.setattr(TreeState, "__init__", state)


@pytest.mark.parametrize(
    "options",
    sample([{}], [{}, {"attention": "triton"}]),
    ids=sample(["auto"], ["auto", "triton"]),
)
@pytest.mark.parametrize(
    "family", sample(["llama", "mistral", "gemma2"], ["llama", "gemma2"])
)
def test_chain_through_tree_attention(
    tiny: Callable[[str], TinyModel],
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    options: dict[str, Any],
) -> None:
    """A chain needs no mask, so vLLM's kernel serves it. Made to go through tree
    attention instead, it has the same logits in every row of every step."""
    model = tiny(family)
    logits: list[torch.Tensor] = []
    attended: set[str | None] = set()
    attend = TreeCPUAttentionImpl.attend_trees

    def count(self: Any, *args: Any) -> None:
        attended.add(getattr(self.tree_attention, "name", None))
        attend(self, *args)

    def run() -> tuple[list[list[int]], list[torch.Tensor]]:
        logits.clear()
        attended.clear()
        medusa = {"model": model.heads, "tree": "chain", **options}
        with engine(model.path, medusa) as llm:
            texts = token_ids(generate(llm, prompts[:COUNT], greedy(LENGTH)))
        return texts, list(logits)

    keep_logits(monkeypatch, logits)
    monkeypatch.setattr(TreeCPUAttentionImpl, "attend_trees", count)
    texts, expected = run()
    assert not attended, "a chain went through tree attention"

    take_chains_for_trees(monkeypatch)
    tree_texts, actual = run()
    assert attended == {options.get("attention")}
    assert tree_texts == texts
    assert len(actual) == len(expected) > 5
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
