# SPDX-License-Identifier: Apache-2.0
"""Figures of hand-made runs."""

from __future__ import annotations

import json

import pytest

from tests.unit.evaluation.runs import make_record, make_run, make_scores
from vllm_medusa.evaluation.metrics import Score
from vllm_medusa.evaluation.records import summarise
from vllm_medusa.evaluation.settings import Setting, make_config, plain

PLAIN = plain("custom", 0.0)
WIDE = Setting("custom", "wide", make_config("default", tree="chain:2"))
TEXTS = [[1, 2, 3, 4, 5], [6, 7, 8, 9]]


def test_figures_by_hand() -> None:
    records = [
        # 9 tokens in 2 * 0.5 + 7 * 0.1 seconds.
        make_record(PLAIN, 0, make_run(TEXTS)),
        # 2 steps for either answer: 2 * 0.5 + 4 * 0.12 seconds.
        make_record(WIDE, 0, make_run(TEXTS, step_seconds=0.12, tokens_per_step=2)),
    ]
    assert (records[1].decode_tokens, records[0].decode_tokens) == (7, 7)
    assert records[1].decode_seconds == pytest.approx(0.48)
    base, wide = summarise(records, make_scores(records), {})
    assert base.speedup.median == base.real_time_factor.median == 1.0
    assert base.tokens_per_second.median == pytest.approx(9 / 1.7)
    assert wide.speedup.median == pytest.approx(1.7 / 1.48)
    assert wide.tokens_per_step.median == pytest.approx(7 / 4)
    assert wide.overhead is not None
    assert wide.overhead.median == pytest.approx(1.2)
    assert wide.step_milliseconds is not None
    assert wide.step_milliseconds.median == pytest.approx(120)
    assert wide.real_time_factor.median == pytest.approx(0.48 / 0.7)
    assert wide.quality.perplexity == pytest.approx(2.71828, abs=1e-4)
    assert wide.quality.tokens == 9
    assert wide.other_texts == 0
    assert wide.references is None


def test_each_run_is_compared_within_its_turn() -> None:
    # A machine that slows down threefold: both turns say the same.
    records = [
        make_record(setting, turn, make_run(TEXTS, step_seconds=step * slow))
        for turn, slow in enumerate((1, 3))
        for setting, step in ((PLAIN, 0.1), (WIDE, 0.05))
    ]
    _, wide = summarise(records, make_scores(records), {})
    assert wide.repeats == 2
    assert wide.overhead is not None
    assert wide.overhead.low == pytest.approx(0.5)
    assert wide.overhead.high == pytest.approx(0.5)
    assert wide.real_time_factor.low == pytest.approx(0.5)


def test_other_texts_are_counted_where_they_should_be_equal() -> None:
    other = [TEXTS[0], [6, 7, 8, 1]]
    records = [make_record(PLAIN, 0, make_run(TEXTS))]
    records.append(make_record(WIDE, 0, make_run(other)))
    assert summarise(records, make_scores(records), {})[1].other_texts == 1

    warm = Setting("custom", "warm", WIDE.config, temperature=0.7)
    records = [
        make_record(plain("custom", 0.7), 0, make_run(TEXTS)),
        make_record(warm, 0, make_run(other)),
    ]
    assert summarise(records, make_scores(records), {})[1].other_texts is None


def test_quality_is_of_the_setting_s_own_answers() -> None:
    records = [
        make_record(PLAIN, 0, make_run([[1, 2]])),
        make_record(WIDE, 0, make_run([[1, 3]])),
    ]
    scores = {
        ("q-0", (1, 2)): Score((0.0, 0.0), (1, 1)),
        ("q-0", (1, 3)): Score((0.0, -2.0), (1, 4)),
    }
    base, wide = summarise(records, scores, {})
    assert (base.quality.perplexity, base.quality.agreement) == (1.0, 1.0)
    assert wide.quality.perplexity == pytest.approx(2.71828, abs=1e-4)
    assert wide.quality.agreement == 0.5


def test_the_same_draw_is_no_new_evidence() -> None:
    # Two turns of two repeats each; a greedy text is the same in all of them, and a
    # drawn one is a draw of its own in every repeat, even if it reads the same.
    for temperature, draws in ((0.0, 1), (0.7, 2)):
        records = [
            make_record(
                plain("custom", temperature), 2 * half + repeat, make_run(TEXTS), repeat
            )
            for half in (0, 1)
            for repeat in (0, 1)
        ]
        (base,) = summarise(records, make_scores(records), {"q-0": "1"})
        assert base.repeats == 4
        assert base.quality.tokens == draws * 9
        assert base.references is not None
        assert base.references.references == draws


def test_references_of_the_prompts_that_have_one() -> None:
    records = [make_record(PLAIN, 0, make_run(TEXTS))]
    (base,) = summarise(records, make_scores(records), {"q-1": "6 7 8 9"})
    assert base.references is not None
    assert base.references.references == 1
    assert base.references.bleu == pytest.approx(100)
    assert base.references.rouge_l == pytest.approx(1)


def test_everything_goes_into_json() -> None:
    records = [make_record(s, 0, make_run(TEXTS)) for s in (PLAIN, WIDE)]
    summaries = summarise(records, make_scores(records), {"q-0": "1 2"})
    rows = json.loads(json.dumps([s.as_dict() for s in summaries]))
    assert [row["setting"] for row in rows] == ["plain", "wide"]
    assert rows[1]["speedup"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert rows[1]["options"].startswith("medusa:default?")
    row = json.loads(json.dumps(records[1].as_dict()))
    assert (row["setting"], row["turn"], row["tokens"]) == ("wide", 0, 9)
    assert row["decode_tokens"] == 7
