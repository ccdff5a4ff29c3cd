# SPDX-License-Identifier: Apache-2.0
"""Heads before their first step."""

from __future__ import annotations

import torch

from vllm_medusa.train.base import make_spec
from vllm_medusa.train.fit_options import FitOptions
from vllm_medusa.train.heads import TrainableHeads
from vllm_medusa.train.options import HeadsOptions
from vllm_medusa.train.vocabulary import most_frequent_tokens


def fresh_heads(
    options: HeadsOptions,
    # [V, H]
    lm_head: torch.Tensor,
    # [num_tokens]
    tokens: torch.Tensor,
    compute_dtype: torch.dtype,
    fit: FitOptions,
) -> TrainableHeads:
    """Heads that repeat the base model's guess, over the most frequent of `tokens`.

    Raises:
        ConfigError: the draft vocabulary or the rank is larger than the base's.
    """
    spec = make_spec(options, lm_head)
    token_map = most_frequent_tokens(tokens, len(lm_head), options.draft_vocab)
    torch.manual_seed(fit.seed)
    return TrainableHeads(
        spec, token_map, lm_head, compute_dtype=compute_dtype, dropout=fit.dropout
    )
