# SPDX-License-Identifier: Apache-2.0
"""The heads a run begins with: fresh ones, or ones trained before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from vllm_medusa.checkpoint import HeadsCheckpoint
from vllm_medusa.errors import CheckpointError
from vllm_medusa.train.answers import Answer
from vllm_medusa.train.base import make_spec
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.options import HeadsOptions
from vllm_medusa.train.vocabulary import most_frequent_tokens


def fresh_heads(
    options: HeadsOptions,
    # [V, H]
    lm_head: torch.Tensor,
    answers: Sequence[Answer],
    compute_dtype: torch.dtype,
    fit: FitOptions,
) -> TrainableHeads:
    """Heads that repeat the original model's guess, over the answers' most frequent
    tokens.

    Raises:
        ConfigError: the draft vocabulary or the rank is larger than the base's.
    """
    spec = make_spec(options, lm_head)
    tokens = [token for answer in answers for token in answer.answer_token_ids]
    token_map = most_frequent_tokens(
        torch.tensor(tokens), len(lm_head), options.draft_vocab
    )
    torch.manual_seed(fit.seed)
    return TrainableHeads(
        spec, token_map, lm_head, compute_dtype=compute_dtype, dropout=fit.dropout
    )


def heads_from(
    checkpoint: HeadsCheckpoint,
    # [V, H]
    lm_head: torch.Tensor,
    compute_dtype: torch.dtype,
    dropout: float,
) -> TrainableHeads:
    """Heads trained before; those over the whole vocabulary get a token_map of it.

    Raises:
        CheckpointError: they are of a model of other sizes.
    """
    vocab_size, hidden_size = lm_head.shape
    found = checkpoint.spec
    if found.hidden_size != hidden_size or found.vocab_size not in (None, vocab_size):
        raise CheckpointError(
            f"{checkpoint.path}: heads of hidden size {found.hidden_size} and "
            f"vocabulary {found.vocab_size} do not fit a model of {hidden_size} and "
            f"{vocab_size}"
        )
    token_map = checkpoint.tensors.get("token_map")
    if token_map is None:
        token_map = torch.arange(found.projected_vocab_size or vocab_size)
    spec = replace(found, vocab_size=vocab_size, draft_vocab_size=len(token_map))
    heads = TrainableHeads(
        spec, token_map, lm_head, compute_dtype=compute_dtype, dropout=dropout
    )
    heads.load_tensors(checkpoint.tensors)
    return heads
