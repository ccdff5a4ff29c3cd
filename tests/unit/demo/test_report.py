# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from vllm_medusa.demo.report import (
    PromptResult,
    Report,
    Sample,
    tokens_per_second,
    tokens_per_step,
)


def sample(token_ids: list[int], seconds: float, drafts: int = 0, accepted: int = 0):
    return Sample("text", token_ids, seconds, drafts, accepted)


def test_figures_over_all_prompts_and_rounds() -> None:
    first = PromptResult(
        "a",
        plain=(sample([1, 2], 1.0), sample([1, 2], 3.0)),
        medusa=(sample([1, 2], 1.0, 1, 0), sample([1, 2], 1.0, 1, 1)),
    )
    second = PromptResult(
        "b",
        plain=(sample([3] * 6, 3.0), sample([3] * 6, 5.0)),
        medusa=(sample([3] * 6, 1.0, 2, 3), sample([3] * 6, 3.0, 4, 2)),
    )
    report = Report((first, second))
    assert report.identical
    assert tokens_per_second(report.plain) == pytest.approx(16 / 12)
    assert report.speedup == pytest.approx(12 / 6)
    assert report.round_speedups == pytest.approx([4 / 2, 8 / 4])
    assert tokens_per_step(report.medusa) == pytest.approx(1 + 6 / 8)
    assert first.speedup == pytest.approx(2.0)


def test_plain_vllm_makes_one_token_a_step() -> None:
    assert tokens_per_step([sample([1, 2, 3], 1.0)]) == 1.0


@pytest.mark.parametrize("where", ["plain", "medusa"])
def test_one_other_token_in_any_round_is_seen(where: str) -> None:
    right, wrong = sample([1, 2], 1.0), sample([1, 3], 1.0)
    answers = {"plain": (right, right), "medusa": (right, right)}
    assert PromptResult("a", **answers).identical
    answers[where] = (right, wrong)
    result = PromptResult("a", **answers)
    assert not result.identical
    assert not Report((result,)).identical
    assert result.as_dict()["identical"] is False
