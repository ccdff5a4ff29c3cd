# SPDX-License-Identifier: Apache-2.0
"""The architecture of heads that fit a base model."""

from __future__ import annotations

import torch

from vllm_medusa.errors import ConfigError
from vllm_medusa.heads.spec import HeadsSpec
from vllm_medusa.train.options import HeadsOptions


def make_spec(options: HeadsOptions, lm_head: torch.Tensor) -> HeadsSpec:
    """The spec of the heads that `options` ask for on this LM head [V, H].

    Raises:
        ConfigError: the draft vocabulary or the rank is larger than the base's.
    """
    vocab_size, hidden_size = lm_head.shape
    if options.draft_vocab > vocab_size:
        raise ConfigError(
            f"draft_vocab is {options.draft_vocab}, but the base model has only "
            f"{vocab_size} tokens"
        )
    low_rank = options.projection == "low_rank"
    if low_rank and options.rank > min(hidden_size, options.draft_vocab):
        raise ConfigError(
            f"rank {options.rank} of the projection is more than "
            f"{min(hidden_size, options.draft_vocab)}, where it saves nothing"
        )
    return HeadsSpec(
        num_heads=options.num_heads,
        hidden_size=hidden_size,
        num_layers=options.num_layers,
        vocab_size=vocab_size,
        block=options.block,
        intermediate_size=options.intermediate_size if options.block == "mlp" else None,
        projection=options.projection,
        rank=options.rank if low_rank else None,
        draft_vocab_size=options.draft_vocab,
    )
