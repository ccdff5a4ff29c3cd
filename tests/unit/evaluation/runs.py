# SPDX-License-Identifier: Apache-2.0
"""Hand-made runs."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_medusa.calibration.steps import Answer, Run, Step
from vllm_medusa.evaluation.metrics import Score
from vllm_medusa.evaluation.records import OutputKey, Record, output_key
from vllm_medusa.evaluation.settings import Setting

MACHINE = {
    "wall_seconds": 1.0,
    "machine_cpu_seconds": 1.0,
    "own_cpu_seconds": 1.0,
    "load_before": 0.0,
    "load_after": 0.0,
}


def make_run(
    texts: Sequence[Sequence[int]],
    *,
    step_seconds: float = 0.1,
    tokens_per_step: int = 1,
    prompt_seconds: float = 0.5,
) -> Run:
    """Answers one after another, every step as long as the other."""
    answers, steps = [], []
    for index, ids in enumerate(texts):
        count = -(-(len(ids) - 1) // tokens_per_step)
        answers.append(
            Answer(
                f"q-{index}",
                list(ids),
                " ".join(map(str, ids)),
                steps=1 + count,
                first_token_seconds=prompt_seconds,
                seconds=prompt_seconds + count * step_seconds,
            )
        )
        steps.append(Step(prompt_seconds, 1, 1, 1, 1))
        steps += [Step(step_seconds, 1, 0, tokens_per_step, 1)] * count
    return Run(1, sum(step.seconds for step in steps), answers, steps, {})


def make_record(setting: Setting, turn: int, run: Run, repeat: int = 0) -> Record:
    return Record(setting, turn, repeat, run, MACHINE)


def make_scores(records: Sequence[Record]) -> dict[OutputKey, Score]:
    """Probability 1/e and rank 1 of every token."""
    return {
        output_key(answer): Score(
            (-1.0,) * len(answer.token_ids), (1,) * len(answer.token_ids)
        )
        for record in records
        for answer in record.run.answers
    }
