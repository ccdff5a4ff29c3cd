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
from vllm_medusa.attention import cpu_kernel
from vllm_medusa.attention.tree_batch import TreeLayout
from vllm_medusa.runner.v1 import MedusaCPUModelRunner

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_chain_through_tree_attention(
    tiny: Callable[[str], TinyModel],
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    """A chain needs no mask, so vLLM's kernel serves it. Made to go through tree
    attention instead, it has the same logits in every row of every step."""
    model = tiny(family)
    logits: list[torch.Tensor] = []
    attended = []
    sample, attend = MedusaCPUModelRunner._sample_trees, cpu_kernel.attend

    def keep_logits(self: Any, rows: torch.Tensor, *rest: Any) -> Any:
        logits.append(rows.clone())
        return sample(self, rows, *rest)

    def count(*args: Any, **kwargs: Any) -> None:
        attended.append(True)
        attend(*args, **kwargs)

    def run() -> tuple[list[list[int]], list[torch.Tensor], int]:
        logits.clear()
        attended.clear()
        with engine(model.path, {"model": model.heads, "tree": "chain"}) as llm:
            texts = token_ids(generate(llm, prompts[:12], greedy(24)))
        return texts, list(logits), len(attended)

    monkeypatch.setattr(MedusaCPUModelRunner, "_sample_trees", keep_logits)
    monkeypatch.setattr("vllm_medusa.attention.cpu.attend", count)
    texts, expected, calls = run()
    assert calls == 0, "a chain went through tree attention"

    layout_of = TreeLayout.of
    monkeypatch.setattr(
        TreeLayout,
        "of",
        staticmethod(lambda *args: replace(layout_of(*args), is_chain=False)),
    )
    tree_texts, actual, calls = run()
    assert calls > 0
    assert tree_texts == texts
    assert len(actual) == len(expected) > 5
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
