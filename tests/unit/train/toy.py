# SPDX-License-Identifier: Apache-2.0
"""A toy base model whose next tokens can be told from its hidden state."""

from __future__ import annotations

import torch

from vllm_medusa.heads.spec import HeadsSpec
from vllm_medusa.train.cached_batches import CachedBatches
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.store import Corpus

VOCAB, HIDDEN = 40, 16


def lm_head() -> torch.Tensor:
    """[VOCAB, HIDDEN]"""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(VOCAB, HIDDEN, generator=generator)


def corpus(num_answers: int = 40, length: int = 50, seed: int = 0) -> Corpus:
    """Answers that count up in steps of 3 with some noise.

    The state a token is drawn from points at that token's row of the LM head.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(VOCAB, (num_answers, 1), generator=generator)
    steps = torch.full((num_answers, length), 3)
    steps[torch.rand(num_answers, length, generator=generator) < 0.1] = 7
    tokens = ((starts + steps.cumsum(1)) % VOCAB).reshape(-1)
    hidden = lm_head()[tokens].bfloat16()
    answers = torch.arange(num_answers).repeat_interleave(length)
    return Corpus(tokens, hidden, answers)


def spec(**changes: object) -> HeadsSpec:
    """Two mlp heads over 30 of the 40 tokens."""
    values: dict[str, object] = {
        "num_heads": 2,
        "hidden_size": HIDDEN,
        "vocab_size": VOCAB,
        "block": "mlp",
        "intermediate_size": 32,
        "projection": "shared",
        "draft_vocab_size": 30,
    }
    return HeadsSpec(**(values | changes))  # type: ignore[arg-type]


def heads(heads_spec: HeadsSpec | None = None, dropout: float = 0.0) -> TrainableHeads:
    """Fresh float32 heads that guess tokens 39, 38, … 10."""
    torch.manual_seed(0)
    return TrainableHeads(
        heads_spec or spec(),
        torch.arange(VOCAB - 1, VOCAB - 31, -1),
        lm_head(),
        compute_dtype=torch.float32,
        dropout=dropout,
    )


def batches(corpus: Corpus, options: FitOptions, num_heads: int = 2) -> CachedBatches:
    """What a trainer of two heads trains on."""
    return CachedBatches(
        corpus,
        num_heads=num_heads,
        rows_per_batch=options.rows_per_step(options.run_length),
        run_length=options.run_length,
        seed=options.seed,
    )
