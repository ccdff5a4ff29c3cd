# SPDX-License-Identifier: Apache-2.0
"""Metrics against values worked out by hand, and against the libraries."""

from __future__ import annotations

import math

import pytest

from vllm_medusa.evaluation.metrics import (
    Score,
    real_time_factor,
    score_references,
    summarise_scores,
)


def test_perplexity_is_the_inverse_geometric_mean_of_probabilities() -> None:
    # Probabilities 1/2, 1/8 and 1/4: the geometric mean is 1/4.
    scores = [
        Score((math.log(0.5), math.log(0.125)), (1, 5)),
        Score((math.log(0.25),), (2,)),
    ]
    quality = summarise_scores(scores)
    assert quality.tokens == 3
    assert quality.perplexity == pytest.approx(4.0)
    # Deviations of the log-probabilities from their mean: log 2, -log 2, 0; their
    # standard deviation is log 2, that of the mean log 2 / sqrt 3.
    error = 4.0 * math.log(2) / math.sqrt(3)
    assert quality.perplexity_error == pytest.approx(error)
    assert quality.agreement == pytest.approx(1 / 3)


def test_certain_tokens_have_perplexity_one() -> None:
    quality = summarise_scores([Score((0.0,), (1,))])
    assert (quality.perplexity, quality.perplexity_error) == (1.0, 0.0)
    assert quality.agreement == 1.0


def test_without_tokens_there_is_no_quality() -> None:
    with pytest.raises(ValueError, match="no tokens to score"):
        summarise_scores([Score((), ())])


def test_real_time_factor_compares_seconds_per_token() -> None:
    # 0.02 s a token against 0.05: a second-equivalent takes 0.4 s.
    assert real_time_factor(2.0, 100, 3.0, 60) == pytest.approx(0.4)
    assert real_time_factor(3.0, 60, 3.0, 60) == 1.0
    for wrong in ((1.0, 0, 1.0, 1), (1.0, 1, 1.0, 0), (1.0, 1, 0.0, 1)):
        with pytest.raises(ValueError, match="needs decoded tokens"):
            real_time_factor(*wrong)


def test_rouge_by_hand() -> None:
    # 3 of 4 words each way; of 3 pairs "the cat" is shared; "the cat sat" in order.
    scores = score_references(["the cat sat quietly"], ["the cat then sat"])
    assert scores.references == 1
    assert scores.rouge1 == pytest.approx(0.75)
    assert scores.rouge2 == pytest.approx(1 / 3)
    assert scores.rouge_l == pytest.approx(0.75)


def test_rouge_is_a_mean_over_texts() -> None:
    scores = score_references(["a b", "x y"], ["a b", "c d"])
    assert scores.rouge1 == scores.rouge_l == pytest.approx(0.5)


def test_bleu_by_hand() -> None:
    reference = "the quick brown fox jumps over the lazy dog"
    assert score_references([reference], [reference]).bleu == pytest.approx(100.0)
    # Nine words, the last one wrong: precisions 8/9, 7/8, 6/7 and 5/6, no penalty.
    text = "the quick brown fox jumps over the lazy cat"
    wanted = 100 * math.prod((8 / 9, 7 / 8, 6 / 7, 5 / 6)) ** 0.25
    assert score_references([text], [reference]).bleu == pytest.approx(wanted)
    # All of it right but four words short: only the brevity penalty is left.
    text = "the quick brown fox jumps"
    wanted = 100 * math.exp(1 - 9 / 5)
    assert score_references([text], [reference]).bleu == pytest.approx(wanted)


def test_every_text_needs_its_reference() -> None:
    for texts, references in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match="as many texts as references"):
            score_references(texts, references)
