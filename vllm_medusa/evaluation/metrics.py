# SPDX-License-Identifier: Apache-2.0
"""Quality of a text under the base model: perplexity and agreement with greedy.

Both come from teacher forcing: one pass of plain vLLM over prompt and output gives the
log-probability (of the unprocessed distribution, that of temperature 1) and the rank of
each output token after all tokens before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Score:
    """One output under the base model.

    `logprobs` holds the natural log-probability and `ranks` the rank (1: the most
    probable) of each of its tokens.
    """

    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Quality:
    """Outputs under the base model.

    Attributes:
        tokens: how many were scored.
        perplexity: exp(-mean log-probability); 1 is the least.
        perplexity_error: its standard error over tokens taken as independent, by the
            delta method: perplexity times the standard error of the mean.
        agreement: share of tokens that greedy decoding would have given in their
            place (rank 1).
    """

    tokens: int
    perplexity: float
    perplexity_error: float
    agreement: float


def summarise_scores(scores: Iterable[Score]) -> Quality:
    """The quality of all outputs together, each token counting alike.

    ValueError if there is no token.
    """
    scores = list(scores)
    logprobs = [value for score in scores for value in score.logprobs]
    ranks = [rank for score in scores for rank in score.ranks]
    if not logprobs:
        raise ValueError("no tokens to score")
    perplexity = math.exp(-fmean(logprobs))
    count = len(logprobs)
    error = stdev(logprobs) / math.sqrt(count) if count > 1 else 0.0
    return Quality(
        tokens=count,
        perplexity=perplexity,
        perplexity_error=perplexity * error,
        agreement=sum(rank == 1 for rank in ranks) / count,
    )


def real_time_factor(
    decode_seconds: float, tokens: int, plain_decode_seconds: float, plain_tokens: int
) -> float:
    """Seconds of decoding per second-equivalent of plain decoding.

    A second-equivalent is the text that plain vLLM decodes in one second at the same
    temperature, so the factor is (decode_seconds ÷ tokens) ÷ (plain_decode_seconds ÷
    plain_tokens): below 1 is faster than plain. Prompts and first tokens count on
    neither side. ValueError if plain vLLM decoded nothing or nothing was decoded.
    """
    if tokens < 1 or plain_tokens < 1 or plain_decode_seconds <= 0:
        raise ValueError("a real-time factor needs decoded tokens on both sides")
    return (decode_seconds / tokens) / (plain_decode_seconds / plain_tokens)


@dataclass(frozen=True)
class ReferenceScores:
    """Texts against reference answers.

    Attributes:
        references: how many texts had one.
        bleu: of the corpus, 0 to 100 (sacrebleu's defaults).
        rouge1: mean F1, 0 to 1, as rouge2 and rouge_l (rouge-score, with stemming).
        rouge2: of pairs of words.
        rouge_l: of the longest common subsequence.
    """

    references: int
    bleu: float
    rouge1: float
    rouge2: float
    rouge_l: float


def score_references(
    texts: Sequence[str], references: Sequence[str]
) -> ReferenceScores:
    """BLEU and ROUGE of `texts`, one reference each. ValueError if there are none."""
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    if not texts or len(texts) != len(references):
        raise ValueError("as many texts as references are needed, at least one")
    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=True)
    scores = [
        scorer.score(reference, text)
        for text, reference in zip(texts, references, strict=True)
    ]
    rouge = [fmean(score[name].fmeasure for score in scores) for name in names]
    bleu = sacrebleu.corpus_bleu(list(texts), [list(references)]).score
    return ReferenceScores(len(texts), bleu, *rouge)
