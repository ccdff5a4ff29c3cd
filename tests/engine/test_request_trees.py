# SPDX-License-Identifier: Apache-2.0
"""Requests that ask for a smaller tree, or for none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from tests.engine.conftest import TinyModel
from tests.engine.support.engines import engine, generate, greedy, stats, token_ids
from tests.runner import sample
from vllm_medusa.propose import MedusaProposer

pytestmark = pytest.mark.engine

COUNT, LENGTH = sample((16, 24), (4, 12))
# The request that joins a running one with a single token to compute is padded by
# vLLM to a whole tree of placeholders: no prompt here is that short.
TREE = [[0], [1], [0, 0], [2], [1, 0], [0, 1]]


def nodes(num_nodes: int | None) -> dict[str, Any]:
    key = "medusa_num_speculative_tokens"
    return {} if num_nodes is None else {"extra_args": {key: num_nodes}}


ALONE = 5
"""Nodes for one request; for many the table has fewer."""


def mixed() -> list[SamplingParams]:
    """With a grammar and without, greedy and seeded, with trees of several sizes."""
    regex = StructuredOutputsParams(regex="[a-z ]{8,}")
    kinds: list[dict[str, Any]] = [
        {"structured_outputs": regex, "temperature": 0.0},
        {"structured_outputs": regex, "temperature": 0.7, "seed": 3},
        {"temperature": 0.0},
    ]
    return [
        SamplingParams(
            max_tokens=LENGTH, ignore_eos=True, **kinds[index % 3], **nodes(size)
        )
        for index, size in enumerate([2, 0, None, 1] * (COUNT // 4))
    ]


# vLLM's V1 can't rewind a CPU generator: no seeded prompt in pieces.
UNCHUNKED = {"max_num_batched_tokens": 4096}


@pytest.fixture(scope="module")
def expected(llama: TinyModel, prompts: list[list[int]]) -> list[list[int]]:
    """Plain vLLM's texts of the mixed requests."""
    with engine(llama.path, **UNCHUNKED) as llm:
        return token_ids(generate(llm, prompts[:COUNT], mixed()))


@pytest.fixture(scope="module")
def medusa(llama: TinyModel, expected: list[list[int]]) -> Iterator[LLM]:
    """An engine with Medusa, after the plain one."""
    options = {
        "model": llama.heads,
        "tree": TREE,
        "num_speculative_tokens_per_batch_size": [[1, 2, ALONE], [3, 16, 3]],
    }
    with engine(llama.path, options, **UNCHUNKED) as llm:
        yield llm


def counted(llm: LLM, prompts: Any, params: Any) -> tuple[list[list[int]], Any]:
    """Texts, and the counters of these requests alone."""
    before = stats(llm)
    texts = token_ids(generate(llm, prompts, params))
    after = stats(llm)
    return texts, {name: after[name] - before[name] for name in before}


@pytest.mark.parametrize("num_nodes", [0, 1, 4, 100, None])
def test_alone(
    num_nodes: int | None,
    medusa: LLM,
    prompts: list[list[int]],
    plain: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The text stays; the trees have no more nodes than asked for; with 0 the heads
    are not asked at all."""
    asked = []
    propose = MedusaProposer.propose

    def counting(self: MedusaProposer, *args: Any) -> Any:
        asked.append(args[1])
        return propose(self, *args)

    monkeypatch.setattr(MedusaProposer, "propose", counting)
    for prompt, text in zip(prompts[:2], plain, strict=False):
        params = greedy(LENGTH, **nodes(num_nodes))
        texts, counters = counted(medusa, [prompt], params)
        assert texts == [text[:LENGTH]]
        size = ALONE if num_nodes is None else min(num_nodes, ALONE)
        assert counters["nodes"] == counters["trees"] * size
        assert (counters["trees"] == 0) == (size == 0)
        assert set(asked) == ({size} if size else set())


def test_beside_others(
    medusa: LLM, prompts: list[list[int]], plain: list[list[int]]
) -> None:
    sizes = [0, None, 2, 1]
    params = [greedy(LENGTH, **nodes(sizes[index % 4])) for index in range(COUNT)]
    texts, counters = counted(medusa, prompts[:COUNT], params)
    assert texts == [text[:LENGTH] for text in plain[:COUNT]]
    assert counters["accepted"] > 0
    off = [greedy(LENGTH, **nodes(size or 0)) for size in sizes]
    texts, fewer = counted(medusa, prompts[:4], off)
    assert texts == [text[:LENGTH] for text in plain[:4]]
    # One of four has two nodes, one has one.
    assert fewer["nodes"] <= 2 * fewer["trees"]


def test_beside_grammars_and_seeds(
    medusa: LLM, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    texts, counters = counted(medusa, prompts[:COUNT], mixed())
    assert texts == expected
    assert counters["accepted"] > 0
