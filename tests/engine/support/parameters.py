# SPDX-License-Identifier: Apache-2.0
"""Sampling parameters on tree rows, compared with plain vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.outputs import RequestOutput

from tests.engine.support.compare import (
    answers,
    assert_same_logprobs,
    assert_same_scores,
)
from tests.engine.support.engines import engine, generate, greedy, stats
from tests.engine.support.heads import fit_heads_to, save_fitted

PLAIN = "no parameter"
"""Name of the greedy requests beside those of the cases."""
TREE = "optimal:12"

Outputs = dict[str, list[RequestOutput]]
"""What each case's requests answered, in the order of the prompts."""


@dataclass(frozen=True, repr=False)
class Requests:
    """The same prompts with the parameters of each case, and with none.

    `cases` maps a name to one SamplingParams for each prompt.
    """

    prompts: list[list[int]]
    cases: Mapping[str, list[SamplingParams]]

    @classmethod
    def of(
        cls,
        prompts: list[list[int]],
        length: int,
        cases: Mapping[str, list[SamplingParams]],
    ) -> Requests:
        """Put plain greedy requests of `length` tokens beside the cases."""
        return cls(prompts, {**cases, PLAIN: [greedy(length)] * len(prompts)})

    def run(self, llm: LLM) -> Outputs:
        """Run all cases in one queue, one request of each after the other."""
        names = list(self.cases)
        outputs = generate(
            llm,
            [prompt for prompt in self.prompts for _ in names],
            [
                self.cases[name][index]
                for index in range(len(self.prompts))
                for name in names
            ],
        )
        return {name: outputs[i :: len(names)] for i, name in enumerate(names)}


def assert_same(mine: list[RequestOutput], theirs: list[RequestOutput]) -> None:
    """Compare texts, ends and logprobs, also those of the prompts."""
    assert answers(mine) == answers(theirs)
    assert_same_logprobs(mine, theirs)
    for output, expected in zip(mine, theirs, strict=True):
        assert_same_scores(output.prompt_logprobs or (), expected.prompt_logprobs or ())


@dataclass(frozen=True, repr=False)
class Comparison:
    """An engine with Medusa, and what plain vLLM answered to the same requests.

    The heads know the expected texts by heart, so that paths are accepted.
    """

    llm: LLM
    requests: Requests
    expected: Outputs

    def check_alone(self, name: str) -> None:
        """Run one case; its requests have trees, and nodes of them are accepted."""
        before = stats(self.llm)
        outputs = generate(self.llm, self.requests.prompts, self.requests.cases[name])
        after = stats(self.llm)
        assert_same(outputs, self.expected[name])
        trees = after["trees"] - before["trees"]
        assert after["accepted"] - before["accepted"] > 0.5 * trees > 0

    def check_mixed(self) -> None:
        """Run all cases beside one another."""
        outputs = self.requests.run(self.llm)
        for name, expected in self.expected.items():
            assert_same(outputs[name], expected)
        counters = stats(self.llm)
        assert counters["moved"] > 0

    def num_changed(self, name: str) -> int:
        """Count the requests whose text differs from the one without parameters."""
        pairs = zip(self.expected[name], self.expected[PLAIN], strict=True)
        return sum(
            list(one.outputs[0].token_ids) != list(other.outputs[0].token_ids)
            for one, other in pairs
        )


def heads_for(
    model: Path, prompts: list[list[int]], expected: Outputs, folder: Path
) -> Path:
    """Save heads fitted to the answers `expected` to `prompts`."""
    texts = [
        (prompt, list(completion.token_ids))
        for outputs in expected.values()
        for prompt, output in zip(prompts, outputs, strict=True)
        for completion in output.outputs
    ]
    return save_fitted(fit_heads_to(model, texts), folder)


@contextmanager
def compared(
    model: Path,
    requests: Requests,
    folder: Path,
    medusa: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[Comparison]:
    """Run `requests` through plain vLLM, then start the engine with Medusa.

    `medusa` are its options beside heads and tree, `options` those of both engines.
    Logprobs are those after all processing unless `options` say otherwise: they show
    what every parameter did to a row.
    """
    options = {"logprobs_mode": "processed_logprobs", **options}
    with engine(model, **options) as llm:
        expected = requests.run(llm)
    heads = heads_for(model, requests.prompts, expected, folder)
    speculative = {"model": heads, "tree": TREE, **(medusa or {})}
    with engine(model, speculative, **options) as llm:
        yield Comparison(llm, requests, expected)
