# SPDX-License-Identifier: Apache-2.0
"""Answers of the base model, and how well the heads guess them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_medusa.calibration.looping import length_without_loop
from vllm_medusa.calibration.nodes import with_nodes
from vllm_medusa.calibration.probability_mass import MassSums
from vllm_medusa.calibration.steps import Request, run_requests

if TYPE_CHECKING:
    from vllm import LLM

NUM_RANKS = 10
"""Guesses of each head that are measured, as in the published trees."""

SHORTEST_ANSWER = 2
"""Tokens: the first one comes with the prompt's step, and no head guesses it."""


@dataclass(frozen=True)
class CalibrationPrompt:
    """One prompt, framed: its token ids up to where the answer begins, and its task."""

    token_ids: list[int]
    task: str | None = None


@dataclass(frozen=True)
class PlainAnswer:
    """What plain decoding answers, up to where it begins to repeat itself."""

    prompt: CalibrationPrompt
    token_ids: list[int]


def answer_plainly(
    llm: LLM,
    prompts: Sequence[CalibrationPrompt],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    concurrency: int = 4,
) -> list[PlainAnswer]:
    """Answers without drafts, of 2 tokens at least; those that end sooner are left out.

    Answer i is drawn with the seed `seed` + i.
    """
    requests = [
        Request(
            str(index),
            prompt.token_ids,
            max_tokens,
            temperature=temperature,
            seed=seed + index,
            extra_args=with_nodes(0),
        )
        for index, prompt in enumerate(prompts)
    ]
    run = run_requests(llm, requests, concurrency)
    answers = [
        PlainAnswer(
            prompts[int(answer.name)],
            answer.token_ids[: length_without_loop(answer.token_ids)],
        )
        for answer in sorted(run.answers, key=lambda answer: int(answer.name))
    ]
    return [answer for answer in answers if len(answer.token_ids) >= SHORTEST_ANSWER]


def measure_accuracies(
    llm: LLM,
    answers: Sequence[PlainAnswer],
    temperature: float,
    num_ranks: int = NUM_RANKS,
) -> dict[str | None, MassSums]:
    """Probability mass by head and rank, by the prompts' task.

    The engine has been made with Medusa, all its heads, and the worker extension of
    `vllm_medusa.calibration.probe`; prefix caching and CUDA graphs are off.
    """
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0.0, max_tokens=1, detokenize=False, extra_args=with_nodes(0)
    )
    sums: dict[str | None, MassSums] = {}
    for answer in answers:
        prompt, count = answer.prompt.token_ids, len(answer.token_ids)
        llm.collective_rpc("start_probe")
        llm.generate(
            {"prompt_token_ids": prompt + answer.token_ids}, params, use_tqdm=False
        )
        arguments = (len(prompt) - 1, count, temperature, num_ranks)
        # With tensor parallelism rank 0 has the logits of all.
        mass, positions = llm.collective_rpc("measure_probe", args=arguments)[0]
        found = MassSums(mass, positions)
        task = answer.prompt.task
        sums[task] = sums[task] + found if task in sums else found
    return sums
