# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from vllm_medusa.calibration.steps import Answer, Run, Step, run_from_dict


def make_run() -> Run:
    """Two answers of 5 tokens side by side: one plain, one in two decode steps."""
    return Run(
        concurrency=2,
        seconds=2.0,
        answers=[
            Answer("math-1", [1, 2, 3, 4, 5], "a", steps=5, seconds=2.0),
            Answer("math-2", [1, 2, 3, 4, 5], "b", steps=3, seconds=1.0),
        ],
        steps=[
            Step(0.9, requests=2, first_tokens=2, tokens=2, running=2),
            Step(0.2, requests=2, first_tokens=0, tokens=3, running=2),
            Step(0.4, requests=2, first_tokens=0, tokens=3, running=2),
            Step(0.1, requests=1, first_tokens=0, tokens=1, running=1),
            Step(0.1, requests=1, first_tokens=0, tokens=1, running=1),
        ],
        counters={"drafts": 6, "draft_tokens": 24, "accepted": 2},
    )


def test_tokens_per_second_counts_all_answers() -> None:
    assert make_run().tokens == 10
    assert make_run().tokens_per_second == 5.0


def test_tokens_per_step_leaves_the_prompts_step_out() -> None:
    # 4 + 4 tokens after the first ones, in 4 + 2 steps.
    assert make_run().tokens_per_step == pytest.approx(8 / 6)


def test_acceptance_length_is_vllms_own_figure() -> None:
    run = make_run()
    assert run.mean_acceptance_length == pytest.approx(1 + 2 / 6)
    run.counters.update(drafts=0, accepted=0)
    assert run.mean_acceptance_length is None


def test_step_time_is_that_of_full_decode_steps() -> None:
    run = make_run()
    assert run.step_seconds() == pytest.approx(0.3)
    assert Run(2, 1.0, run.answers, run.steps[:1], {}).step_seconds() is None


def test_answers_of_one_token_have_no_decode_step() -> None:
    run = Run(1, 1.0, [Answer("x", [7], "c", steps=1)], [], {})
    assert run.tokens_per_step == 1.0


def test_a_run_survives_json() -> None:
    run = make_run()
    assert run_from_dict(json.loads(json.dumps(run.as_dict()))) == run
