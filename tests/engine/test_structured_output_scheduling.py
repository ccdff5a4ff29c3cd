# SPDX-License-Identifier: Apache-2.0
"""Structured outputs under trees of every kind, preemption and scheduling ahead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, metrics, stats
from tests.engine.support.grammars import (
    CASES,
    CONFIG,
    FREE,
    IS_WHOLE,
    LENGTH,
    constrained,
    forbid_errors,
)
from tests.engine.support.parameters import Requests, compared
from tests.runner import sample, slow_on_v2

pytestmark = pytest.mark.engine

COUNT = sample(16, 2)


@pytest.fixture(autouse=True)
def no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_errors(monkeypatch)


ENGINES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # options of Medusa and of vLLM
    "beam": ({"tree": "beam:3x3"}, {}),
    "cut trees": (
        {"num_speculative_tokens_per_batch_size": [[1, 2, 12], [3, 16, 5]]},
        {},
    ),
    "prompts in pieces": ({}, {"max_num_batched_tokens": sample(24, 64)}),
    "guidance": ({}, {"structured_outputs_config": {"backend": "guidance"}}),
}


@pytest.mark.parametrize("name", sample(ENGINES, ("beam", "prompts in pieces")))
def test_trees(
    llama: TinyModel,
    prompts: list[list[int]],
    tmp_path: Path,
    name: str,
) -> None:
    medusa, options = ENGINES[name]
    params = constrained(regex=FREE)
    requests = Requests.of(prompts[:COUNT], LENGTH, {"free": [params] * COUNT})
    with compared(
        llama.path, requests, tmp_path, medusa, **{**CONFIG, **options}
    ) as both:
        both.check_alone("free")
        both.check_mixed()


def test_chain(llama: TinyModel, prompts: list[list[int]], tmp_path: Path) -> None:
    """vLLM's own way: drafts behind one that the grammar refuses are not verified."""
    requests = Requests(prompts[:COUNT], {"free": [constrained(regex=FREE)] * COUNT})
    with compared(
        llama.path, requests, tmp_path, {"tree": "chain:4"}, **CONFIG
    ) as both:
        both.check_alone("free")


def test_preemption(llama: TinyModel, prompts: list[list[int]], tmp_path: Path) -> None:
    """A grammar stands where its text stands when the request starts again."""
    count, length = sample((24, 48), (8, 24))
    params = constrained(length, regex=FREE)
    requests = Requests.of(prompts[:count], length, {"free": [params] * count})
    with compared(
        llama.path,
        requests,
        tmp_path,
        num_gpu_blocks_override=sample(24, 15),
        max_num_seqs=8,
        **CONFIG,
    ) as both:
        both.check_mixed()
        assert metrics(both.llm)["vllm:num_preemptions"] > 0


@pytest.mark.parametrize(
    "acceptance", ["rejection", pytest.param("typical", marks=slow_on_v2)]
)
def test_schemes(llama: TinyModel, prompts: list[list[int]], acceptance: str) -> None:
    """What the grammar excludes has probability 0, which no scheme accepts."""
    tokenizer = AutoTokenizer.from_pretrained(llama.path)
    names = list(CASES) * COUNT
    params = [CASES[name].clone() for name in names]
    for of_request in params:
        of_request.temperature = 1.0
    medusa = {"model": llama.heads, "tree": "optimal:12", "acceptance": acceptance}
    with engine(llama.path, medusa, **CONFIG) as llm:
        outputs = generate(llm, prompts[: len(names)], params)
        counters = stats(llm)
    assert counters["accepted"] > 0
    for name, output in zip(names, outputs, strict=True):
        (completion,) = output.outputs
        assert completion.finish_reason == "stop"
        text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        assert IS_WHOLE[name](text), text


@pytest.mark.runner(
    "v2", reason="V1 keys no noise on positions, and runs no step ahead"
)
@pytest.mark.parametrize("ahead", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_seed(
    llama: TinyModel, prompts: list[list[int]], tmp_path: Path, ahead: bool
) -> None:
    """With a seed the text is plain vLLM's, whether or not a step is scheduled before
    the last one's tokens, and so the drafts, are known."""
    cases = {}
    for name, constraint in CASES.items():
        cases[name] = [constraint.clone() for _ in range(COUNT)]
        for seed, params in enumerate(cases[name]):
            params.temperature, params.seed = 1.0, seed
    requests = Requests.of(prompts[:COUNT], LENGTH, cases)
    with compared(
        llama.path, requests, tmp_path, async_scheduling=ahead, **CONFIG
    ) as both:
        config = both.llm.llm_engine.vllm_config
        assert config.scheduler_config.async_scheduling == ahead
        both.check_mixed()
        for name in CASES:
            both.check_alone(name)
